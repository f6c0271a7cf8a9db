"""Products of matrices in every layout. Bilinear: the cotangent of one factor is the product of the cotangent with the
other, so each keeps the other, and only if the other's cotangent is wanted.
"""

import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from fbp import _compat
from fbp.core import table
from fbp.rules import choices
from fbp.rules.common import explicit_sharding, swapped_precision


def dot_bar(g, other, aval, dimension_numbers, precision, preferred_element_type, is_right=False):
    """y = a · b, contracted over some axes, side by side over others (batch)  =>  a_bar = g · b over b's free axes.

    The axes of y are: batch, free in a, free in b. The product of g and b has batch, free in a, contracted as in b; a
    transposition brings them to where they are in a. For b (`is_right`) it is the same with the roles changed: b_bar is
    aᵀ g, or the transpose of gᵀ a.
    """
    (contracted, contracted_other), (batch, batch_other) = dimension_numbers
    n_batch = len(batch)
    free = [i for i in range(aval.ndim) if i not in contracted and i not in batch]
    free_other = [i for i in range(other.ndim) if i not in contracted_other and i not in batch_other]
    first = n_batch + (0 if is_right else len(free))  # where in g the other's free axes are
    over = list(range(first, first + len(free_other))), free_other
    side_by_side = list(range(n_batch)), list(batch_other)
    contracted_in_order = [contracted[i] for i in np.argsort(contracted_other, kind="stable")]
    left, right, axes = g, other, [*batch, *free, *contracted_in_order]
    if is_right and not choices.takes_cotangent_first(g, other, aval, free < [*contracted]):
        left, right, axes = other, g, [*batch, *contracted_in_order, *free]
        over, side_by_side = (over[1], over[0]), (side_by_side[1], side_by_side[0])
        precision = swapped_precision(precision)
    out = explicit_sharding(aval, axes)
    product = lax.dot_general(left, right, (over, side_by_side), precision, preferred_element_type, out_sharding=out)
    return lax.convert_element_type(lax.transpose(product, np.argsort(axes)), aval.dtype)


def dot_left_bar(g, b, *, site, dimension_numbers, precision, preferred_element_type):
    return dot_bar(g, b, site.avals[0], dimension_numbers, precision, preferred_element_type)


def dot_right_bar(g, a, *, site, dimension_numbers, precision, preferred_element_type):
    (contracted_a, contracted_b), (batch_a, batch_b) = dimension_numbers
    numbers, precision = ((contracted_b, contracted_a), (batch_b, batch_a)), swapped_precision(precision)
    return dot_bar(g, a, site.avals[1], numbers, precision, preferred_element_type, is_right=True)


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


RULES = {
    p.dot_general_p: table(dot_left_bar, dot_right_bar),
    _compat.ragged_dot_general_p: table(ragged_left_bar, ragged_right_bar, None),
}
