"""Sorting: a permutation, whose transpose is its inverse."""

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as p

from fbp.core import Rule, zeros
from fbp.rules.common import explicit_sharding, where_flowing


def _sort_forward(site, *xs, dimension, is_stable, num_keys):
    sharding = explicit_sharding(site.avals[0])
    places = lax.broadcasted_iota(jnp.int32, xs[0].shape, dimension, out_sharding=sharding)
    *ys, order = lax.sort((*xs, places), dimension=dimension, is_stable=is_stable, num_keys=num_keys)
    return ys, order


def _sort_backward(site, order, *y_bars, dimension, **_):
    """y = x[order]  =>  x_bar[order] = y_bar: the cotangents, sorted by where their elements came from."""

    def back(places):
        _, *x_bars = lax.sort((order, *(y_bars[i] for i in places)), dimension=dimension, num_keys=1)
        return x_bars

    return where_flowing(y_bars, back)


def _top_k_forward(site, x, **params):
    y, indices = site.primitive.bind(x, **params)
    return [y, indices], indices


def _top_k_backward(site, indices, y_bar, _, *, axis, **__):
    places = [lax.broadcasted_iota(indices.dtype, indices.shape, i) for i in range(indices.ndim)]
    places[axis] = indices
    x_bar = zeros(site.avals[0].update(weak_type=False))
    return [x_bar.at[tuple(places)].add(y_bar, mode="promise_in_bounds", unique_indices=True)]


RULES = {
    p.sort_p: Rule(_sort_forward, _sort_backward),
    p.top_k_p: Rule(_top_k_forward, _top_k_backward),
    p.approx_top_k_p: Rule(
        _top_k_forward,
        lambda site, indices, *y_bars, reduction_dimension, **_: _top_k_backward(
            site, indices, *y_bars, axis=reduction_dimension
        ),
    ),
}
