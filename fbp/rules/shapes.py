"""Shapes: operations that move elements and do not change them. Linear, so no residual: the cotangent moves back."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from fbp.core import Rule, table
from fbp.rules.common import keep_nothing, written_out


def broadcast_bar(g, *, site, broadcast_dimensions):
    """Sums over the axes that are new, and over those that were of length one (see `unbroadcast`)."""
    x = site.avals[0]
    kept = {axis for i, axis in enumerate(broadcast_dimensions) if x.shape[i] == g.shape[axis] != 1}
    new = [axis for axis in range(g.ndim) if axis not in kept]
    return jnp.sum(g, new, dtype=g.dtype).reshape(x.shape) if new else g.reshape(x.shape)


def reshape_bar(g, *, site, dimensions):
    """`dimensions` is an order in which the axes were taken before reshaping."""
    shape = site.avals[0].shape
    if dimensions is None:
        return g.reshape(shape)
    return lax.transpose(g.reshape([shape[i] for i in dimensions]), np.argsort(dimensions))


def slice_bar(g, *, site, start_indices, limit_indices, strides):
    """Zeros around the cotangent, and between its elements where there were strides."""
    shape = site.avals[0].shape
    strides = strides or (1,) * len(shape)
    ends = [
        start + stride * (n - 1) + 1 if n else start
        for start, stride, n in zip(start_indices, strides, g.shape, strict=True)
    ]
    config = [
        (start, n - end, stride - 1) for start, end, stride, n in zip(start_indices, ends, strides, shape, strict=True)
    ]
    return lax.pad(g, lax.full((), 0, g.dtype), config)


def unpad(g, padding_config):
    """The elements of a padded array that are not padding."""
    low, high, interior = zip(*padding_config, strict=True) if padding_config else ((), (), ())
    g = lax.pad(g, lax.full((), 0, g.dtype), [(-a, -b, 0) for a, b in zip(low, high, strict=True)])
    return lax.slice(g, (0,) * g.ndim, g.shape, [i + 1 for i in interior])


def _pad_backward(site, _, g, *, padding_config):
    """y = x with `value` around it  =>  x_bar is the inside of g, and value_bar the sum of the rest."""
    x_bar = unpad(g, padding_config)
    return [x_bar, jnp.sum(g, dtype=g.dtype) - jnp.sum(x_bar, dtype=g.dtype) if site.needs[1] else None]


def _concatenate_backward(site, _, g, *, dimension):
    ends = np.cumsum([x.shape[dimension] for x in site.avals]).tolist()
    starts = [0, *ends[:-1]]
    return [
        lax.slice_in_dim(g, start, end, axis=dimension) if needed else None
        for start, end, needed in zip(starts, ends, site.needs, strict=True)
    ]


def _split_backward(site, _, *y_bars, axis, **__):
    return [lax.concatenate(written_out(y_bars, site.out_avals), axis)]


def _stack_backward(site, _, g, *, axis):
    return [lax.index_in_dim(g, i, axis, keepdims=False) if needed else None for i, needed in enumerate(site.needs)]


def _unstack_backward(site, _, *y_bars, axis):
    return [jnp.stack(written_out(y_bars, site.out_avals), axis)]


def tile_bar(g, *, site, reps):
    """Each axis was repeated: fold it to [repetition, element], and sum over the repetitions."""
    shape = site.avals[0].shape
    folded = g.reshape([n for pair in zip(reps, shape, strict=True) for n in pair])
    return jnp.sum(folded, range(0, 2 * len(shape), 2), dtype=g.dtype)


RULES = {
    p.reshape_p: table(reshape_bar),
    p.squeeze_p: table(lambda g, *, site: g.reshape(site.avals[0].shape)),
    p.transpose_p: table(lambda g, *, permutation: lax.transpose(g, np.argsort(permutation))),
    p.rev_p: table(lambda g, *, dimensions: lax.rev(g, dimensions)),
    p.broadcast_in_dim_p: table(broadcast_bar),
    p.slice_p: table(slice_bar),
    p.pad_p: Rule(keep_nothing, _pad_backward),
    p.concatenate_p: Rule(keep_nothing, _concatenate_backward),
    lax.split_p: Rule(keep_nothing, _split_backward),
    lax.stack_p: Rule(keep_nothing, _stack_backward),
    lax.unstack_p: Rule(keep_nothing, _unstack_backward),
    lax.tile_p: table(tile_bar),
}  # fmt: skip
