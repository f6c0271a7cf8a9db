"""Pooling over the axes between the first and the last; as in `flax.linen`. x: [batch, *spatial, features]."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fbp.nn.layer import Layer, stateless
from fbp.nn.linear import Padding, as_padding, as_tuple, check_axes


def max_pool(window_shape: Sequence[int], strides: int | Sequence[int] = 1, padding: Padding = "VALID") -> Layer:
    """y_i = max of x over the window of i. Strides are 1 unless given, as in Flax.

    >>> layer = max_pool((2, 2), strides=2)
    >>> layer.apply({}, {}, jnp.arange(16.0).reshape(1, 4, 4, 1))[0].ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]
    """
    return stateless("max_pool", lambda x: window("max_pool", x, -jnp.inf, lax.max, window_shape, strides, padding))


def min_pool(window_shape: Sequence[int], strides: int | Sequence[int] = 1, padding: Padding = "VALID") -> Layer:
    """y_i = min of x over the window of i."""
    return stateless("min_pool", lambda x: window("min_pool", x, jnp.inf, lax.min, window_shape, strides, padding))


def avg_pool(
    window_shape: Sequence[int],
    strides: int | Sequence[int] = 1,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> Layer:
    """y_i = mean of x over the window of i; with `count_include_pad` the padding counts as zeros."""

    def fun(x):
        total = window("avg_pool", x, 0.0, lax.add, window_shape, strides, padding)
        if count_include_pad:
            return total / jnp.asarray(jnp.prod(jnp.array(window_shape)), x.dtype)
        ones = jnp.ones((1, *x.shape[1:-1], 1), x.dtype)
        return total / window("avg_pool", ones, 0.0, lax.add, window_shape, strides, padding)

    return stateless("avg_pool", fun)


def global_avg_pool() -> Layer:
    """[batch, *spatial, features] -> [batch, features], the mean over space."""
    return stateless("global_avg_pool", lambda x: jnp.mean(x, range(1, x.ndim - 1)))


def window(name, x, init, computation, window_shape, strides, padding) -> jax.Array:
    n = len(window_shape)
    check_axes(name, x, n)
    pads = as_padding(padding, n)
    if not isinstance(pads, str):
        pads = [(0, 0), *pads, (0, 0)]
    dims = (1, *window_shape, 1)
    return lax.reduce_window(x, np.array(init, x.dtype), computation, dims, (1, *as_tuple(strides, n), 1), pads)
