"""Cases for `fbp.rules.convolutions`."""

from jax import lax

from fbp.check.case import Case, normal

Padding = str | tuple[tuple[int, int], ...]
FIRST = ("NCHW", "OIHW", "NCHW")


def conv(strides=(1, 1), padding: Padding = "SAME", numbers=("NHWC", "HWIO", "NHWC"), **options):
    return lambda x, w: lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers, **options)


CASES = [
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
    Case(
        "conv/depthwise, dilated",
        conv((1, 2), ((2, -1), (0, 3)), rhs_dilation=(2, 1), feature_group_count=3),
        (normal(2, 5, 4, 3), normal(2, 3, 1, 3)),
        ulps=16,
    ),
    Case(
        "conv/depthwise, channels first",
        conv((1, 1), numbers=FIRST, feature_group_count=4),
        (normal(2, 4, 5, 3), normal(4, 1, 3, 3)),
        ulps=16,
    ),
    Case(
        "conv/grouped, channels first",
        conv((2, 1), numbers=FIRST, feature_group_count=2),
        (normal(2, 4, 5, 3), normal(6, 2, 3, 3)),
        ulps=16,
    ),
    Case("conv/much work", conv(), (normal(32, 9, 20, 32), normal(3, 3, 32, 64)), ulps=16, second=False),
    Case("conv/of colours", conv((2, 2)), (normal(2, 6, 5, 3), normal(3, 3, 3, 24)), ulps=16),
    Case("conv/1x1", conv(), (normal(2, 5, 4, 3), normal(1, 1, 3, 2)), ulps=16),
    Case("conv/1x1, strided", conv((2, 3)), (normal(2, 5, 4, 3), normal(1, 1, 3, 2)), ulps=16),
    Case("conv/batch groups", conv(batch_group_count=2), (normal(4, 5, 4, 3), normal(3, 3, 3, 4)), ulps=16),
    Case("conv/channels first", conv(numbers=FIRST), (normal(2, 3, 5, 4), normal(2, 3, 3, 3)), ulps=16),
    Case("conv/one axis", conv((2,), "SAME", ("NWC", "WIO", "NWC")), (normal(2, 5, 3), normal(3, 3, 2)), ulps=16),
    Case(
        "conv_transpose/wide",
        lambda x, w: lax.conv_transpose(x, w, (2, 3), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        (normal(2, 3, 4, 3), normal(4, 2, 3, 2)),
        ulps=16,
    ),
    Case(
        "conv_transpose",
        lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        (normal(2, 3, 4, 3), normal(3, 3, 3, 2)),
        ulps=16,
    ),
]
