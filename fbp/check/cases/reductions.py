"""Cases for `fbp.rules.reductions`."""

import jax
import jax.numpy as jnp
from jax import lax

from fbp.check.case import Case, distinct, fixed, normal, uniform

X = (normal(2, 3, 2),)

CASES = [
    Case("reduce_sum", lambda x: jnp.sum(x, 1), X, complex=True),
    Case("reduce_sum/all", jnp.sum, X, complex=True),
    Case("reduce_sum/empty", lambda x: jnp.sum(x, 0), (normal(0, 3),)),
    Case("reduce_max", lambda x: jnp.max(x, (0, 2)), (distinct(2, 3, 2),)),
    Case("reduce_max/ties", jnp.max, (fixed([1.0, 3.0, 3.0, 3.0]),)),
    Case("reduce_min", lambda x: jnp.min(x, 1), (distinct(2, 3, 2),)),
    Case("reduce_min/ties", jnp.min, (fixed([[1.0, 1.0], [2.0, 1.0]]),)),
    Case("reduce_prod", lambda x: jnp.prod(x, 1), X, complex=True),
    Case("reduce_prod/axes", lambda x: jnp.prod(x, (0, 2)), X),
    Case("reduce_prod/zeros", lambda x: jnp.prod(x, 1), (fixed([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]]),), second=False),
    Case("reduce", lambda x: lax.reduce(x, jnp.ones((), x.dtype), lambda a, b: a * b, (0, 2)), X, complex=True),
    Case(
        "reduce/two",
        lambda x, y: lax.reduce(
            (x, y),
            (jnp.zeros((), x.dtype), jnp.ones((), y.dtype)),
            lambda a, b: (a[0] * b[1] + b[0], a[1] * b[1]),
            (1,),
        ),
        (normal(2, 5), normal(2, 5)),
    ),
    Case("reduce/empty", lambda x: lax.reduce(x, jnp.ones((), x.dtype), lambda a, b: a * b, (0,)), (normal(0, 3),)),
    Case("cumsum", lambda x: lax.cumsum(x, 1), X, complex=True),
    Case("cumsum/reverse", lambda x: lax.cumsum(x, 0, reverse=True), X),
    Case("cumprod", lambda x: lax.cumprod(x, 1), X, complex=True),
    Case("cumprod/zeros", lambda x: lax.cumprod(x), (fixed([2.0, 0.0, 3.0, 0.0, 1.0]),)),
    Case("cummax", lambda x: lax.cummax(x, 1), (distinct(2, 5),)),
    Case("cummax/ties", lambda x: lax.cummax(x, reverse=True), (fixed([1.0, 2.0, 2.0, 0.0, 2.0]),)),
    Case("cummin", lambda x: lax.cummin(x, 1), (distinct(2, 5),)),
    Case("cumlogsumexp", lambda x: lax.cumlogsumexp(x, 1), X),
    Case("softmax", jax.nn.softmax, X),
    Case("logsumexp", jax.nn.logsumexp, X),
    Case("variance", lambda x: jnp.var(x, 0) + jnp.mean(x), X, complex=True),
    Case("norm", lambda x: jnp.linalg.norm(x, axis=0), (uniform(0.5, 1, 3, 2),)),
]
