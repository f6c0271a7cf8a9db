"""Sorting: a permutation, whose transpose is its inverse."""

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as p

from fbp.core import Rule, zeros
from fbp.rules.common import explicit_sharding


def _to_places(y_bar, places, aval, axis):
    """The cotangent that is y_bar at these places along an axis, each of which comes once, and zero elsewhere."""
    axis %= aval.ndim
    others = tuple(i for i in range(aval.ndim) if i != axis)
    numbers = lax.ScatterDimensionNumbers((), (axis,), (axis,), others, others)
    x_bar, places = zeros(aval.update(weak_type=False)), lax.expand_dims(places, [places.ndim])
    return lax.scatter_add(x_bar, places, y_bar, numbers, unique_indices=True, mode="promise_in_bounds")


def _sort_forward(site, *xs, dimension, is_stable, num_keys):
    sharding = explicit_sharding(site.avals[0])
    places = lax.broadcasted_iota(jnp.int32, xs[0].shape, dimension, out_sharding=sharding)
    *ys, order = lax.sort((*xs, places), dimension=dimension, is_stable=is_stable, num_keys=num_keys)
    return ys, order


def _sort_backward(site, order, *y_bars, dimension, **_):
    """y = x[order]  =>  x_bar[order] = y_bar."""
    bars = zip(y_bars, site.avals, strict=True)
    return [None if y_bar is None else _to_places(y_bar, order, aval, dimension) for y_bar, aval in bars]


def _top_k_forward(site, x, **params):
    y, indices = site.primitive.bind(x, **params)
    return [y, indices], indices


def _top_k_backward(site, indices, y_bar, _, *, axis, **__):
    return [_to_places(y_bar, indices, site.avals[0], axis)]


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
