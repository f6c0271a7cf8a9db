"""Cases for `fbp.rules.hijax`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import hijax

from fbp.check.case import Case, integers, normal

Base: Any = getattr(hijax, "HiPrim", None) or hijax.VJPHiPrimitive  # its name until jax 0.11


class Bilinear(Base):
    """y = sin(x) · w, with a backward pass that keeps what the wanted cotangents read."""

    def __init__(self, x, w):
        self.in_avals = (x, w)
        self.out_aval = x
        self.params = {}
        super().__init__()

    def expand(self, x, w):
        return jnp.sin(x) * w

    def vjp_fwd(self, needs, x, w):
        return self(x, w), (jnp.cos(x) * w if needs[0] else None, jnp.sin(x) if needs[1] else None)

    def vjp_bwd_retval(self, residuals, y_bar):
        return tuple(None if r is None else r * y_bar for r in residuals)

    def batch(self, axis_data, args, dims):
        x, w = (
            jnp.broadcast_to(x, (axis_data.size, *x.shape)) if d is None else x for x, d in zip(args, dims, strict=True)
        )
        return Bilinear(jax.typeof(x), jax.typeof(w))(x, w), 0


def bilinear(x, w):
    return Bilinear(jax.typeof(x), jax.typeof(w))(x, w)


XY = (normal(3, 2), normal(3, 2))

CASES = [  # Bilinear has no tangent map, so JAX has no second derivative of it, and no adjoint identity.
    Case("hi-primitive", bilinear, XY, second=False, adjoint=False),
    Case(
        "hi-primitive/in jit", jax.jit(lambda x, w: bilinear(jnp.tanh(x), w * x) * x), XY, second=False, adjoint=False
    ),
    # From jax 0.12 on these are hi-primitives, with tangent maps.
    Case("ldexp", jnp.ldexp, (normal(4), integers(-3, 4, 4))),
    Case("frexp", lambda x: jnp.frexp(x)[0] * x, (normal(4),)),
    Case("searchsorted", lambda x, y: y * jnp.searchsorted(jnp.sort(x), y), (normal(4), normal(3))),
]
