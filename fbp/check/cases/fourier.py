"""Cases for `fbp.rules.fourier`."""

import jax.numpy as jnp
from jax import lax

from fbp.check.case import Case, normal


def through(transform):
    """Real numbers in and out, with a complex transform between them."""

    def fun(x, y):
        z = transform(lax.complex(x, y))
        return jnp.sin(z.real) * z.imag

    return fun


XY = (normal(3, 4), normal(3, 4))

CASES = [
    Case("fft", through(jnp.fft.fft), XY, low=False, ulps=16),
    Case("ifft", through(jnp.fft.ifft), XY, low=False, ulps=16),
    Case("fft/two axes", through(jnp.fft.fft2), XY, low=False, ulps=16),
    Case("fft/first axis", through(lambda z: jnp.fft.fft(z, axis=0)), XY, low=False, ulps=16),
    Case("rfft/even", lambda x: jnp.abs(jnp.fft.rfft(x)), (normal(2, 6),), low=False, ulps=32),
    Case("rfft/odd", lambda x: jnp.abs(jnp.fft.rfft(x)), (normal(2, 5),), low=False, ulps=32),
    Case("rfft/one", lambda x: jnp.fft.rfft(x).real, (normal(2, 1),), low=False),
    Case("rfft/two axes", lambda x: jnp.abs(jnp.fft.rfftn(x)), (normal(3, 4),), low=False, ulps=32),
    Case("irfft/even", lambda x, y: jnp.sin(jnp.fft.irfft(lax.complex(x, y), 6)), XY, low=False, ulps=16),
    Case("irfft/odd", lambda x, y: jnp.sin(jnp.fft.irfft(lax.complex(x, y), 7)), XY, low=False, ulps=16),
    Case("irfft/two axes", lambda x, y: jnp.sin(jnp.fft.irfftn(lax.complex(x, y))), XY, low=False, ulps=16),
]
