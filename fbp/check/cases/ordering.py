"""Cases for `fbp.rules.ordering`."""

import jax.numpy as jnp
from jax import lax

from fbp.check.case import Case, distinct, fixed, normal

CASES = [
    Case("sort", lambda x: lax.sort(x, dimension=0), (distinct(4, 3),)),
    Case("sort/ties", lambda x: lax.sort(x), (fixed([1.0, 0.0, 1.0, 0.0]),)),
    Case("sort/values by keys", lambda k, v: lax.sort((k, v), num_keys=1), (distinct(2, 4), normal(2, 4))),
    Case("sort/two keys", lambda a, b, v: lax.sort((a, b, v), num_keys=2), (distinct(5), distinct(5), normal(5))),
    Case("sort/empty", lambda x: lax.sort(x), (distinct(0),)),
    Case("median", lambda x: jnp.median(x, 1), (distinct(2, 5),)),
    Case("top_k", lambda x: lax.top_k(x, 2), (distinct(3, 5),)),
    Case("approx_top_k", lambda x: lax.approx_max_k(x, 2, reduction_dimension=0), (distinct(5, 3),)),
    Case("approx_top_k/min", lambda x: lax.approx_min_k(x, 2), (distinct(3, 5),)),
]
