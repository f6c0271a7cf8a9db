"""Cases for `fbp.rules.windows`."""

import jax
import jax.numpy as jnp
from jax import lax

from fbp.check.case import Case, distinct, fixed, normal


def pool(computation, init, window, strides, padding="VALID", **options):
    return lambda x: lax.reduce_window(x, init, computation, window, strides, padding, **options)


def twice(fun):
    """The gradient by JAX of the sum of squares: a program that holds JAX's own transposes."""
    return jax.grad(lambda x: jnp.sum(fun(x) ** 2))


CASES = [
    Case("reduce_window_sum", pool(lax.add, 0.0, (2, 2), (1, 2)), (normal(4, 5),)),
    Case("reduce_window_sum/same", pool(lax.add, 0.0, (3, 3), (2, 2), "SAME"), (normal(5, 6),)),
    Case(
        "reduce_window_sum/dilated",
        pool(lax.add, 0.0, (2, 2), (1, 1), base_dilation=(2, 1), window_dilation=(1, 2)),
        (normal(4, 5),),
    ),
    Case("reduce_window_max", pool(lax.max, -jnp.inf, (2, 2), (2, 2)), (distinct(4, 6),)),
    Case("reduce_window_max/overlapping", pool(lax.max, -jnp.inf, (3, 3), (2, 2), "SAME"), (distinct(5, 6),)),
    Case(
        "reduce_window_max/ties",
        pool(lax.max, -jnp.inf, (2, 2), (1, 1)),
        (fixed([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0], [2.0, 2.0, 2.0]]),),
    ),
    # Where an element equals the padding, JAX's forward mode chooses the padding and its reverse mode the element.
    Case(
        "reduce_window_max/lowest",
        pool(lax.max, -jnp.inf, (2,), (1,), "SAME"),
        (fixed([-jnp.inf, -jnp.inf, 0.0, 1.0]),),
        adjoint=False,
    ),
    Case(
        "reduce_window_max/nan", pool(lax.max, -jnp.inf, (2,), (1,)), (fixed([0.0, jnp.nan, 1.0, 2.0]),), second=False
    ),
    Case(
        "reduce_window_max/dilated",
        pool(lax.max, -jnp.inf, (2, 2), (1, 1), base_dilation=(2, 1), window_dilation=(1, 1)),
        (distinct(4, 5),),
    ),
    Case("reduce_window_max/large", pool(lax.max, -jnp.inf, (6, 6), (1, 1)), (distinct(7, 8),)),
    Case(
        "reduce_window_max/large, dilated",
        pool(lax.max, -jnp.inf, (6, 6), (1, 1), base_dilation=(1, 2)),
        (distinct(7, 8),),
    ),
    Case("reduce_window_min", pool(lax.min, jnp.inf, (2, 2), (2, 2)), (distinct(4, 6),)),
    Case(
        "select_and_gather_add",
        lambda x, t: jax.jvp(pool(lax.max, -jnp.inf, (2, 2), (2, 2)), (x,), (t,))[1],
        (distinct(4, 6), normal(4, 6)),
        second=False,
    ),
    Case("select_and_scatter_add", twice(pool(lax.max, -jnp.inf, (2, 2), (2, 2))), (distinct(4, 6),), second=False),
]
