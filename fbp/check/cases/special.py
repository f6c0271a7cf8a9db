"""Cases for `fbp.rules.special`."""

import jax
import jax.numpy as jnp
from jax import lax

from fbp.check.case import Case, fixed, normal, uniform

X = (normal(2, 3),)
POSITIVE = (uniform(0.5, 3, 2, 3),)
KEY = jax.random.key(0)
TWO = (uniform(0.5, 3, 2, 3), uniform(0.5, 3, 2, 3))

CASES = [
    Case("erf", lax.erf, X),
    Case("erfc", lax.erfc, X),
    Case("erf_inv", lax.erf_inv, (uniform(-0.9, 0.9, 2, 3),)),
    Case("lgamma", lax.lgamma, POSITIVE),
    Case("digamma", lax.digamma, POSITIVE, ulps=16),
    Case("polygamma", lambda x: lax.polygamma(lax.full_like(x, 2), x), POSITIVE, low=False, ulps=16),
    Case("igamma", lax.igamma, TWO, low=False, second=False, ulps=16),
    Case("igammac", lax.igammac, TWO, low=False, second=False, ulps=16),
    Case(
        "betainc",
        lambda x: lax.betainc(lax.full_like(x, 2), lax.full_like(x, 1.5), x),
        (uniform(0.1, 0.9, 2, 3),),
        low=False,
        ulps=16,
    ),
    Case("random_gamma", lambda a: jax.random.gamma(KEY, a, dtype=a.dtype), POSITIVE, low=False, second=False, ulps=16),
    Case(
        "random_gamma/log",
        lambda a: jax.random.loggamma(KEY, a, dtype=a.dtype),
        (uniform(0.01, 2, 3),),
        low=False,
        second=False,
        ulps=16,
    ),
    Case("bessel_i0e", lax.bessel_i0e, X, second=True),
    Case("bessel_i1e", lax.bessel_i1e, X, second=True),
    Case("bessel_i1e/zero", lax.bessel_i1e, (fixed([0.0, 1.0]),), second=False),
    Case("xlogy", lambda x: jnp.sum(x * lax.lgamma(x)), POSITIVE, ulps=16),
]
