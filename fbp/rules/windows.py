"""Windows: sums and maxima over a sliding window, as in pooling."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as p

from fbp.core import Rule, table
from fbp.rules import choices
from fbp.rules.common import taps, where
from fbp.rules.convolutions import spread_size
from fbp.rules.shapes import unpad

MAX_TAPS = 32  # windows of more elements are searched again in the backward pass, rather than unrolled


def window_sum_bar(g, *, site, window_dimensions, window_strides, padding, base_dilation, window_dilation):
    """A convolution with a kernel of ones; so is its transpose (see `fbp.rules.convolutions`)."""
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


def _choice(x, y_shape, select_prim, *, window_dimensions, window_strides, padding, base_dilation, window_dilation):
    """The number, in one byte, of the element that each output takes from its window: the first largest (`ge`) or
    smallest (`le`), as in XLA. It is found in one pass over the elements of the window."""
    config = _padding_config(padding, base_dilation)
    padded = lax.pad(x, _last_choice(select_prim, x.dtype), config)
    # Padding is never chosen, not even where an element equals it.
    inside = lax.pad(lax.full_like(x, True, bool), False, config) if any(c != (0, 0, 0) for c in config) else None
    best: Any = None  # the element chosen so far,
    choice: Any = None  # its number,
    found: Any = None  # and whether there was one, besides padding
    for k, (starts, ends) in enumerate(taps(window_dimensions, window_dilation, window_strides, y_shape)):
        candidate = lax.slice(padded, starts, ends, window_strides)
        valid = None if inside is None else lax.slice(inside, starts, ends, window_strides)
        if best is None:
            best, choice, found = candidate, lax.full_like(candidate, 0, jnp.int8), valid
            continue
        keep = select_prim.bind(best, candidate)
        if valid is not None:
            keep = (keep & found) | ~valid
            found = found | valid
        best, choice = where(keep, best, candidate), where(keep, choice, lax.full_like(candidate, k, jnp.int8))
    return choice


def _to_choice(g, choice, x, *, window_dimensions, window_strides, padding, base_dilation, window_dilation):
    """Each g to the element of x (a type) that was chosen: sums of masked copies of g, without a second search.

    Where all outputs find the same element of their windows, every stride-th of x, is a plane of the padded x; x_bar is woven
    of the planes."""
    config = _padding_config(padding, base_dilation)
    sizes = [spread_size(n, d) + lo + hi for n, d, (lo, hi) in zip(x.shape, base_dilation, padding, strict=True)]
    lengths = [-(-n // s) for n, s in zip(sizes, window_strides, strict=True)]
    planes = {}
    for k, (starts, _) in enumerate(taps(window_dimensions, window_dilation, window_strides, g.shape)):
        steps, plane = zip(*map(divmod, starts, window_strides), strict=True)
        around = [(a, n - a - m, 0) for a, n, m in zip(steps, lengths, g.shape, strict=True)]
        part = lax.pad(where(choice == k, g, lax.full_like(g, 0)), lax.full((), 0, g.dtype), around)
        planes[plane] = planes[plane] + part if plane in planes else part
    zeros = lax.full(lengths, 0, g.dtype)
    every = [planes.get(plane, zeros) for plane in itertools.product(*map(range, window_strides))]
    woven = jnp.stack(every).reshape(*window_strides, *lengths)
    woven = lax.transpose(woven, [i + j for i in range(g.ndim) for j in (g.ndim, 0)])  # each stride behind its length
    padded_bar = woven.reshape([n * s for n, s in zip(lengths, window_strides, strict=True)])
    return unpad(lax.slice(padded_bar, [0] * g.ndim, sizes), config)


def _to_searched(site, g, x, select_prim, *, base_dilation, window_dilation, **params):
    """The same for a large window, which XLA searches again."""
    if any(d != 1 for d in window_dilation):
        raise NotImplementedError(
            f"no cotangent for {site}: its dilated window has {math.prod(params['window_dimensions'])} elements, and there "
            f"is a rule for at most {MAX_TAPS}. (JAX has none.) Pool along one axis after the other."
        )
    config = [(0, 0, d - 1) for d in base_dilation]
    spread = lax.pad(x, _last_choice(select_prim, x.dtype), config)
    return unpad(p.select_and_scatter_add_p.bind(g, spread, select_prim=select_prim, **params), config)


def chosen_in_window(select_prim):
    """y_i = max of x over the window of i  =>  the cotangent goes to the first element that has it, as in XLA."""

    def forward(site, x, **windows):
        y = site.primitive.bind(x, **windows)
        if not _is_small(windows):
            return y, x
        if images := choices.images_searched_at_a_time(jax.typeof(x), **windows):
            of_one = lambda x: _choice(x[None], (1, *y.shape[1:]), select_prim, **windows)[0]
            return y, lax.map(of_one, x, batch_size=images)
        return y, _choice(x, y.shape, select_prim, **windows)

    def backward(site, kept, g, **windows):
        if _is_small(windows):
            return [_to_choice(g, kept, *site.avals, **windows)]
        return [_to_searched(site, g, kept, select_prim, **windows)]

    return Rule(forward, backward)


def _is_small(windows):
    return math.prod(windows["window_dimensions"]) <= MAX_TAPS


def _padding_config(padding, base_dilation):
    return [(lo, hi, d - 1) for (lo, hi), d in zip(padding, base_dilation, strict=True)]


def _last_choice(select_prim, dtype):
    """The value that is chosen last: the lowest where the largest is looked for."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return lax.full((), -jnp.inf if select_prim is lax.ge_p else jnp.inf, dtype)
    return lax.full((), jnp.iinfo(dtype).min if select_prim is lax.ge_p else jnp.iinfo(dtype).max, dtype)


# JAX writes the gradient of pooling with these two, each the transpose of the other in its first argument; they are
# here for programs that have them, such as the gradient of a `jax.grad`.
def _scatter_selected_forward(site, source, x, **params):
    return site.primitive.bind(source, x, **params), x


def _scatter_selected_backward(site, x, g, **params):
    ones = (1,) * g.ndim
    return [p.select_and_gather_add_p.bind(g, x, base_dilation=ones, window_dilation=ones, **params), None]


def _gather_selected_backward(site, x, g, *, select_prim, **windows):
    if any(d != 1 for d in windows["window_dilation"]) and _is_small(windows):
        return [_to_choice(g, _choice(x, g.shape, select_prim, **windows), site.avals[0], **windows), None]
    return [_to_searched(site, g, x, select_prim, **windows), None]


RULES = {
    p.reduce_window_sum_p: table(window_sum_bar),
    p.reduce_window_max_p: chosen_in_window(lax.ge_p),
    p.reduce_window_min_p: chosen_in_window(lax.le_p),
    p.select_and_scatter_add_p: Rule(_scatter_selected_forward, _scatter_selected_backward),
    p.select_and_gather_add_p: Rule(_scatter_selected_forward, _gather_selected_backward),
}
