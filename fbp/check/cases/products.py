"""Cases for `fbp.rules.products`."""

import jax.numpy as jnp
from jax import lax

from fbp.check.case import Case, normal


def dot(contract, batch=((), ()), **options):
    return lambda a, b: lax.dot_general(a, b, (contract, batch), **options)


def ragged(a, b):
    """Two rows times the first matrix, none or three times the second."""
    return lax.ragged_dot(a, b, jnp.array([2, 3], jnp.int32))


ANY_AXES = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1, 0), (3, 2)), ((), ())), lhs_ragged_dimensions=[2], rhs_group_dimensions=[1]
)


CASES = [
    Case("dot_general", dot(((1,), (0,))), (normal(2, 3), normal(3, 4)), complex=True),
    Case("dot_general/transposed", dot(((0,), (1,))), (normal(3, 2), normal(4, 3)), complex=True),
    Case("dot_general/batched", dot(((2,), (1,)), ((0,), (0,))), (normal(2, 3, 4), normal(2, 4, 5))),
    Case(
        "dot_general/two contracted",
        dot(((0, 3), (2, 0)), ((2,), (1,))),
        (normal(2, 3, 4, 5), normal(5, 4, 2, 3)),
        complex=True,
    ),
    Case("dot_general/two batched", dot(((1,), (0,)), ((3, 0), (1, 3))), (normal(2, 3, 4, 5), normal(3, 5, 6, 2))),
    Case("dot_general/outer", dot(((), ())), (normal(2), normal(3))),
    Case("dot_general/vector", dot(((0,), (0,))), (normal(3), normal(3)), complex=True),
    Case(
        "dot_general/preferred",
        dot(((1,), (0,)), preferred_element_type=jnp.float32),
        (normal(2, 3), normal(3, 4)),
        second=False,
        adjoint=False,
    ),
    Case("dot_general/empty", dot(((1,), (0,))), (normal(2, 0), normal(0, 4))),
    Case("einsum", lambda a, b: jnp.einsum("bthd,bshd->bhts", a, b), (normal(2, 3, 2, 4), normal(2, 5, 2, 4))),
    Case("ragged_dot", ragged, (normal(5, 3), normal(2, 3, 4)), second=False, mapped=False),
    Case(
        "ragged_dot/other axes",
        lambda a, b: lax.ragged_dot_general(a, b, jnp.array([2, 3], jnp.int32), ANY_AXES),
        (normal(3, 2, 5), normal(4, 2, 3, 2)),
        second=False,
        mapped=False,
    ),
]
