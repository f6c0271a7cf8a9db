"""Cases for `fbp.rules.products`."""

import jax.numpy as jnp
from jax import lax

from fbp.check.case import Case, normal

Padding = str | tuple[tuple[int, int], ...]


def dot(contract, batch=((), ()), **options):
    return lambda a, b: lax.dot_general(a, b, (contract, batch), **options)


def conv(strides=(1, 1), padding: Padding = "SAME", numbers=("NHWC", "HWIO", "NHWC"), **options):
    return lambda x, w: lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers, **options)


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
    Case("conv", conv(), (normal(2, 5, 4, 3), normal(3, 3, 3, 2)), complex=True, ulps=16),
    Case("conv/strided", conv((2, 3), "VALID"), (normal(2, 7, 8, 3), normal(3, 2, 3, 2)), ulps=16),
    Case("conv/padded", conv((1, 2), ((2, -1), (-1, 3))), (normal(2, 6, 5, 3), normal(2, 3, 3, 2)), ulps=16),
    Case(
        "conv/dilated",
        conv((2, 1), ((1, 2), (0, 1)), lhs_dilation=(1, 2), rhs_dilation=(2, 1)),
        (normal(2, 6, 5, 2), normal(2, 3, 2, 3)),
        ulps=16,
    ),
    Case("conv/grouped", conv(feature_group_count=2), (normal(2, 5, 4, 4), normal(3, 3, 2, 6)), ulps=16),
    Case("conv/depthwise", conv((2, 2), feature_group_count=3), (normal(2, 5, 4, 3), normal(3, 3, 1, 6)), ulps=16),
    Case("conv/batch groups", conv(batch_group_count=2), (normal(4, 5, 4, 3), normal(3, 3, 3, 4)), ulps=16),
    Case(
        "conv/channels first", conv(numbers=("NCHW", "OIHW", "NCHW")), (normal(2, 3, 5, 4), normal(2, 3, 3, 3)), ulps=16
    ),
    Case("conv/one axis", conv((2,), "SAME", ("NWC", "WIO", "NWC")), (normal(2, 5, 3), normal(3, 3, 2)), ulps=16),
    Case(
        "conv_transpose",
        lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        (normal(2, 3, 4, 3), normal(3, 3, 3, 2)),
        ulps=16,
    ),
]
