"""Windows: sums and maxima over a sliding window, as in pooling."""

import itertools
import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as p

from fbp.core import Rule, table
from fbp.rules.common import where
from fbp.rules.products import spread_size
from fbp.rules.shapes import unpad

MAX_TAPS = 32  # windows of more elements are searched again in the backward pass, rather than unrolled


def window_sum_bar(g, *, site, window_dimensions, window_strides, padding, base_dilation, window_dilation):
    """A convolution with a kernel of ones; so is its transpose (see `fbp.rules.products`)."""
    x_spread = map(spread_size, site.avals[0].shape, base_dilation)
    w_spread = list(map(spread_size, window_dimensions, window_dilation))
    y_spread = map(spread_size, g.shape, window_strides)
    low = [k - lo - 1 for k, (lo, _) in zip(w_spread, padding, strict=True)]
    high = [n + k - 1 - m - lo for n, k, m, lo in zip(x_spread, w_spread, y_spread, low, strict=True)]
    config = [(lo, hi, stride - 1) for lo, hi, stride in zip(low, high, window_strides, strict=True)]
    return p.reduce_window_sum_p.bind(
        lax.pad(g, lax.full((), 0, g.dtype), config),
        window_dimensions=window_dimensions,
        window_strides=base_dilation,
        padding=((0, 0),) * g.ndim,
        base_dilation=(1,) * g.ndim,
        window_dilation=window_dilation,
    )


def _taps(window_dimensions, window_dilation, window_strides, y_shape):
    """For each element of the window: where in the padded input the outputs find it, as (start, end, stride) by axis."""
    for tap in itertools.product(*map(range, window_dimensions)):
        starts = [i * d for i, d in zip(tap, window_dilation, strict=True)]
        ends = [a + s * (n - 1) + 1 if n else a for a, s, n in zip(starts, window_strides, y_shape, strict=True)]
        yield starts, ends


def chosen_in_window(keeps, init):
    """y_i = max of x over the window of i  =>  the cotangent goes to the first element that has it, as in XLA.

    The forward pass goes through the elements of the window once and notes the number of the one chosen, one byte per
    output; the backward pass is then a sum of masked copies of g, without a second search.
    `keeps(best, candidate)` says whether the earlier element stays; `init` gives the padding.
    """

    def forward(site, x, *, window_dimensions, window_strides, padding, base_dilation, window_dilation):
        y = site.primitive.bind(
            x,
            window_dimensions=window_dimensions,
            window_strides=window_strides,
            padding=padding,
            base_dilation=base_dilation,
            window_dilation=window_dilation,
        )
        if math.prod(window_dimensions) > MAX_TAPS:
            return y, x
        config = [(lo, hi, d - 1) for (lo, hi), d in zip(padding, base_dilation, strict=True)]
        padded = lax.pad(x, init(x.dtype), config)
        # Padding is never chosen, not even where an element equals it.
        inside = lax.pad(lax.full(x.shape, True), False, config) if any(c != (0, 0, 0) for c in config) else None
        best: Any = None  # the element chosen so far,
        choice: Any = None  # its number,
        found: Any = None  # and whether there was one, besides padding
        for k, (starts, ends) in enumerate(_taps(window_dimensions, window_dilation, window_strides, y.shape)):
            candidate = lax.slice(padded, starts, ends, window_strides)
            valid = None if inside is None else lax.slice(inside, starts, ends, window_strides)
            if best is None:
                best, choice, found = candidate, lax.full(y.shape, 0, jnp.int8), valid
                continue
            keep = keeps(best, candidate)
            if valid is not None:
                keep = (keep & found) | ~valid
                found = found | valid
            best, choice = where(keep, best, candidate), where(keep, choice, lax.full(y.shape, k, jnp.int8))
        return y, choice

    def backward(site, residual, g, *, window_dimensions, window_strides, padding, base_dilation, window_dilation):
        (x,) = site.avals
        if math.prod(window_dimensions) > MAX_TAPS:
            assert base_dilation == window_dilation == (1,) * g.ndim, "dilated windows this large have no rule in JAX"
            return [
                p.select_and_scatter_add_p.bind(
                    g,
                    residual,
                    select_prim=lax.ge_p if site.primitive is p.reduce_window_max_p else lax.le_p,
                    window_dimensions=window_dimensions,
                    window_strides=window_strides,
                    padding=padding,
                )
            ]
        config = [(lo, hi, d - 1) for (lo, hi), d in zip(padding, base_dilation, strict=True)]
        sizes = [spread_size(n, d) + lo + hi for n, d, (lo, hi) in zip(x.shape, base_dilation, padding, strict=True)]
        zero = lax.full((), 0, g.dtype)
        padded_bar = lax.full(sizes, 0, g.dtype)
        for k, (starts, ends) in enumerate(_taps(window_dimensions, window_dilation, window_strides, g.shape)):
            part = where(residual == k, g, lax.full_like(g, 0))
            around = [(a, n - b, s - 1) for a, b, n, s in zip(starts, ends, sizes, window_strides, strict=True)]
            padded_bar = padded_bar + lax.pad(part, zero, around)
        return [unpad(padded_bar, config)]

    return Rule(forward, backward)


def _lowest(dtype):
    return lax.full((), -jnp.inf if jnp.issubdtype(dtype, jnp.inexact) else jnp.iinfo(dtype).min, dtype)


def _highest(dtype):
    return lax.full((), jnp.inf if jnp.issubdtype(dtype, jnp.inexact) else jnp.iinfo(dtype).max, dtype)


# JAX writes the gradient of pooling with these two, each the transpose of the other in its first argument; they are
# here for programs that have them, such as the gradient of a `jax.grad`.
def _scatter_selected_forward(site, source, x, **params):
    return site.primitive.bind(source, x, **params), x


def _scatter_selected_backward(site, x, g, **params):
    ones = (1,) * g.ndim
    return [p.select_and_gather_add_p.bind(g, x, base_dilation=ones, window_dilation=ones, **params), None]


def _gather_selected_backward(site, x, g, *, base_dilation, window_dilation, **params):
    assert base_dilation == window_dilation == (1,) * g.ndim
    return [p.select_and_scatter_add_p.bind(g, x, **params), None]


RULES = {
    p.reduce_window_sum_p: table(window_sum_bar),
    p.reduce_window_max_p: chosen_in_window(lax.ge, _lowest),
    p.reduce_window_min_p: chosen_in_window(lax.le, _highest),
    p.select_and_scatter_add_p: Rule(_scatter_selected_forward, _scatter_selected_backward),
    p.select_and_gather_add_p: Rule(_scatter_selected_forward, _gather_selected_backward),
}
