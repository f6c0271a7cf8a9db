"""Collectives: operations in which devices, or the examples of a `vmap`, exchange values along a named axis.

A collective is linear, and its transpose is a collective too: what a device sent to others comes back from them as
cotangents.
"""

from jax import lax
from jax.extend.core import primitives as p

from fbp import _compat
from fbp.core import table
from fbp.rules.common import spread


def psum_bar(g, *, site, axes, axis_index_groups):
    """y = Σ_devices x, on each of them  =>  x_bar = Σ_devices g. Along an axis of the array itself: copies of g."""
    positions = tuple(axis for axis in axes if isinstance(axis, int))
    named = tuple(axis for axis in axes if not isinstance(axis, int))
    g = spread(g, site.avals[0].shape, positions) if positions else g
    return site.primitive.bind(g, axes=named, axis_index_groups=axis_index_groups)


def ppermute_bar(g, *, axis_name, perm):
    """y_j = x_i for each i → j  =>  x_bar_i = g_j."""
    return lax.ppermute(g, axis_name, [(to, start) for start, to in perm])


def all_to_all_bar(g, *, axis_name, split_axis, concat_axis, axis_index_groups, tiled):
    """y_j = parts j of all x_i, joined  =>  the parts of g go back where they came from."""
    return lax.all_to_all(g, axis_name, concat_axis, split_axis, axis_index_groups=axis_index_groups, tiled=tiled)


def all_gather_bar(g, *, axis_name, all_gather_dimension, axis_index_groups, tiled):
    """y_j = all x_i, joined  =>  x_bar_i = Σ_j part i of g_j."""
    return lax.psum_scatter(
        g,
        axis_name,
        scatter_dimension=all_gather_dimension,
        axis_index_groups=axis_index_groups,
        tiled=tiled,
    )


def all_gather_invariant_bar(g, *, axis_name, all_gather_dimension, axis_size, tiled):
    """y = all x_i, joined, known to be one and the same  =>  x_bar_i = part i of g."""
    size = g.shape[all_gather_dimension] // axis_size
    part = lax.dynamic_slice_in_dim(g, lax.axis_index(axis_name) * size, size, all_gather_dimension)
    return part if tiled else lax.squeeze(part, [all_gather_dimension])


def psum_scatter_bar(g, *, axis_name, scatter_dimension, axis_index_groups, tiled):
    """y_j = Σ_i part j of x_i  =>  x_bar_i = all g_j, joined."""
    return lax.all_gather(g, axis_name, axis=scatter_dimension, axis_index_groups=axis_index_groups, tiled=tiled)


RULES = {
    p.psum_p: table(psum_bar),
    p.ppermute_p: table(ppermute_bar),
    p.all_to_all_p: table(all_to_all_bar),
    p.all_gather_p: table(all_gather_bar),
    _compat.all_gather_invariant_p: table(all_gather_invariant_bar),
    _compat.reduce_scatter_p: table(psum_scatter_bar),
}
