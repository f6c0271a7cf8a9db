"""Products: matrix products in every layout, and convolutions. Bilinear: the cotangent of one factor is the product of
the cotangent with the other, so each keeps the other, and only if the other's cotangent is wanted.
"""

from typing import Any

import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from fbp import _compat
from fbp.core import table

# -------------------------------------------------------------------------------------------------- matrix products


def dot_bars(g, other, aval, dimension_numbers, swapped, options):
    """y = a · b, contracted over some axes, side by side over others (batch)  =>  a_bar = g · b over b's free axes.

    The axes of y are: batch, free in a, free in b. The product of g and b has batch, free in a, contracted as in b; a
    transposition brings them to where they are in a. For b, the same with the roles swapped, and a as the left factor:
    W_bar = xᵀ g comes out in the layout of W.
    """
    (contracted, contracted_other), (batch, batch_other) = dimension_numbers
    n_batch = len(batch)
    free = [i for i in range(aval.ndim) if i not in contracted and i not in batch]
    free_other = [i for i in range(other.ndim) if i not in contracted_other and i not in batch_other]
    first = n_batch + (0 if swapped else len(free))  # where in g the other's free axes are
    over = list(range(first, first + len(free_other))), free_other
    side_by_side = list(range(n_batch)), list(batch_other)
    contracted_in_order = [contracted[i] for i in np.argsort(contracted_other, kind="stable")]
    if swapped:
        product = lax.dot_general(other, g, ((over[1], over[0]), (side_by_side[1], side_by_side[0])), **options)
        axes = [*batch, *contracted_in_order, *free]
    else:
        product = lax.dot_general(g, other, (over, side_by_side), **options)
        axes = [*batch, *free, *contracted_in_order]
    return lax.convert_element_type(lax.transpose(product, np.argsort(axes)), aval.dtype)


def dot_left_bar(g, b, *, site, dimension_numbers, precision, preferred_element_type):
    options = {"precision": precision, "preferred_element_type": preferred_element_type}
    return dot_bars(g, b, site.avals[0], dimension_numbers, False, options)


def dot_right_bar(g, a, *, site, dimension_numbers, precision, preferred_element_type):
    options = {"precision": _swap(precision), "preferred_element_type": preferred_element_type}
    (contracted_a, contracted_b), (batch_a, batch_b) = dimension_numbers
    swapped_numbers = (contracted_b, contracted_a), (batch_b, batch_a)
    return dot_bars(g, a, site.avals[1], swapped_numbers, True, options)


def _swap(precision: Any) -> Any:
    return precision[::-1] if isinstance(precision, tuple) else precision


def _ragged_axes(site, numbers):
    """The axes of both factors: batch, contracted, and free ones; and the first free one's place in the result."""
    (contracted_a, contracted_b), (batch_a, batch_b) = numbers.dot_dimension_numbers
    groups, rows = list(numbers.rhs_group_dimensions), list(numbers.lhs_ragged_dimensions)
    a, b, _ = site.avals
    free_a = [i for i in range(a.ndim) if i not in contracted_a and i not in batch_a]
    free_b = [i for i in range(b.ndim) if i not in contracted_b and i not in batch_b and i not in groups]
    if rows[0] not in free_a:
        raise NotImplementedError(
            f"no cotangents for {site} when its groups divide a contracted or a batch axis: JAX defines none. "
            "Divide a free axis of the left factor, or stop_gradient the factors."
        )
    return (contracted_a, contracted_b), (batch_a, batch_b), (free_a, free_b), len(batch_a)


def ragged_left_bar(g, b, c, *, site, ragged_dot_dimension_numbers, precision, preferred_element_type):
    """y[rows of group i] = a[rows of group i] · b_i, with c the sizes of the groups  =>  a_bar = g · b_i likewise."""
    numbers = ragged_dot_dimension_numbers
    contracted, batch, (free, free_b), n = _ragged_axes(site, numbers)
    after = n + len(free)
    back = lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=((list(range(after, after + len(free_b))), free_b), (list(range(n)), batch[1])),
        lhs_ragged_dimensions=[n + free.index(numbers.lhs_ragged_dimensions[0])],
        rhs_group_dimensions=numbers.rhs_group_dimensions,
    )
    options = {"precision": precision, "preferred_element_type": preferred_element_type}
    product = lax.ragged_dot_general(g, b, c, back, **options)
    axes = [*batch[0], *free, *(contracted[0][i] for i in np.argsort(contracted[1], kind="stable"))]
    return lax.convert_element_type(lax.transpose(product, np.argsort(axes)), site.avals[0].dtype)


def ragged_right_bar(g, a, c, *, site, ragged_dot_dimension_numbers, precision, preferred_element_type):
    """The same y  =>  b_bar_i = a[rows of group i]ᵀ · g[rows of group i]."""
    numbers = ragged_dot_dimension_numbers
    contracted, batch, (free, free_b), n = _ragged_axes(site, numbers)
    back = lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=((free, list(range(n, n + len(free)))), (batch[0], list(range(n)))),
        lhs_ragged_dimensions=numbers.lhs_ragged_dimensions,
        rhs_group_dimensions=[],
    )
    options = {"precision": precision, "preferred_element_type": preferred_element_type}
    product = lax.ragged_dot_general(a, g, c, back, **options)
    contracted_in_order = [contracted[1][i] for i in np.argsort(contracted[0], kind="stable")]
    axes = [*numbers.rhs_group_dimensions, *batch[1], *contracted_in_order, *free_b]
    return lax.convert_element_type(lax.transpose(product, np.argsort(axes)), site.avals[1].dtype)


# ---------------------------------------------------------------------------------------------------- convolutions
#
# Along one axis, with the input x spread by its dilation, the kernel w by its own, the output y by the stride:
#
#     y_i = Σ_k w_k x_{i+k-low}   =>   x_bar_j = Σ_k w_k y_bar_{j-k+low},   w_bar_k = Σ_i y_bar_i x_{i+k-low}.
#
# Both are convolutions again: of y_bar with w flipped, and of x with y_bar as the kernel. Strides of y become dilations
# of y_bar and dilations of x become strides, and the padding is what makes the sizes come out.


def spread_size(n: int, dilation: int) -> int:
    return 0 if n == 0 else 1 + dilation * (n - 1)


def split_axis(x, axis, groups, to):
    """Takes the groups out of one axis and puts them, as the slower index, into another: [g·n, m] -> [n, g·m]."""
    shape = [*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :]]
    x = x.reshape(shape)
    order = [i for i in range(x.ndim) if i != axis]
    position = order.index(to if to < axis else to + 1)
    order.insert(position, axis)
    x = lax.transpose(x, order)
    shape = list(x.shape)
    shape[position : position + 2] = [shape[position] * shape[position + 1]]
    return x.reshape(shape)


def conv_input_bar(
    g, w, *, site, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
    batch_group_count, precision, preferred_element_type,
):  # fmt: skip
    x = site.avals[0]
    x_spec, w_spec, y_spec = dimension_numbers
    x_sizes, w_sizes, y_sizes = ([a.shape[i] for i in spec[2:]] for a, spec in ((x, x_spec), (w, w_spec), (g, y_spec)))
    x_spread = map(spread_size, x_sizes, lhs_dilation)
    w_spread = list(map(spread_size, w_sizes, rhs_dilation))
    y_spread = map(spread_size, y_sizes, window_strides)
    low = [k - lo - 1 for k, (lo, _) in zip(w_spread, padding, strict=True)]
    high = [n + k - 1 - m - lo for n, k, m, lo in zip(x_spread, w_spread, y_spread, low, strict=True)]
    groups = max(feature_group_count, batch_group_count)
    if groups > 1:
        w = split_axis(w, w_spec[0], groups, w_spec[1])
    x_bar = lax.conv_general_dilated(
        g,
        lax.rev(w, w_spec[2:]),
        window_strides=lhs_dilation,
        padding=list(zip(low, high, strict=True)),
        lhs_dilation=window_strides,
        rhs_dilation=rhs_dilation,
        dimension_numbers=lax.ConvDimensionNumbers(y_spec, (w_spec[1], w_spec[0], *w_spec[2:]), x_spec),
        feature_group_count=groups,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    if batch_group_count > 1:
        x_bar = split_axis(x_bar, x_spec[1], groups, x_spec[0])
    return lax.convert_element_type(x_bar, x.dtype)


def conv_kernel_bar(
    g, x, *, site, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
    batch_group_count, precision, preferred_element_type,
):  # fmt: skip
    w = site.avals[1]
    x_spec, w_spec, y_spec = dimension_numbers
    x_sizes, w_sizes, y_sizes = ([a.shape[i] for i in spec[2:]] for a, spec in ((x, x_spec), (w, w_spec), (g, y_spec)))
    x_spread = map(spread_size, x_sizes, lhs_dilation)
    w_spread = map(spread_size, w_sizes, rhs_dilation)
    y_spread = map(spread_size, y_sizes, window_strides)
    low = [lo for lo, _ in padding]
    high = [k + m - n - lo - 1 for n, k, m, lo in zip(x_spread, w_spread, y_spread, low, strict=True)]
    # The batch is what is summed over, so it takes the place of the input features; the groups of one kind of axis
    # become groups of the other.
    if batch_group_count > 1:
        feature_group_count, batch_group_count = batch_group_count, 1
    elif feature_group_count > 1:
        feature_group_count, batch_group_count = 1, feature_group_count
    w_bar = lax.conv_general_dilated(
        x,
        g,
        window_strides=rhs_dilation,
        padding=list(zip(low, high, strict=True)),
        lhs_dilation=lhs_dilation,
        rhs_dilation=window_strides,
        dimension_numbers=lax.ConvDimensionNumbers(
            (x_spec[1], x_spec[0], *x_spec[2:]),
            (y_spec[1], y_spec[0], *y_spec[2:]),
            (w_spec[1], w_spec[0], *w_spec[2:]),
        ),
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=_swap(precision),
        preferred_element_type=preferred_element_type,
    )
    return lax.convert_element_type(w_bar, w.dtype)


RULES = {
    p.dot_general_p: table(dot_left_bar, dot_right_bar),
    _compat.ragged_dot_general_p: table(ragged_left_bar, ragged_right_bar, None),
    p.conv_general_dilated_p: table(conv_input_bar, conv_kernel_bar),
}
