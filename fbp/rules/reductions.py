"""Reductions and cumulative operations."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as p

from fbp import _compat
from fbp.core import Rule, table
from fbp.rules.common import split, spread


def _choose_forward(site, x, *, axes, **params):
    """Kept is where x is the maximum, as it is now: a value that was computed again might be rounded otherwise."""
    y = site.primitive.bind(x, axes=axes, **params)
    return y, x == spread(y, x.shape, axes)


def _choose_backward(site, chosen, g, *, axes, **_):
    """y = max x  =>  x_bar = g where x = y, in equal parts where several are. (Also for min.)"""
    here = lax.convert_element_type(chosen, g.dtype)
    count = jnp.sum(here, axes, dtype=g.dtype)
    # nan where y is: 0 / 0, as under jax.grad
    return [spread(g, here.shape, axes) * here / spread(count, here.shape, axes)]


def product_bar(g, x, *, axes):
    """y = Π x_j  =>  x_bar_i = g Π_{j≠i} x_j: the product of what is before and what is behind, right at zeros too."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    order = [*kept, *axes]
    moved = lax.transpose(x, order)
    flat = moved.reshape(*g.shape, -1)
    one = lax.full_like(flat, 1, shape=(*g.shape, 1))
    n = flat.shape[-1]
    before = lax.cumprod(lax.concatenate([one, flat[..., : max(n - 1, 0)]], g.ndim)[..., :n], g.ndim)
    behind = lax.cumprod(lax.concatenate([flat[..., 1:], one], g.ndim)[..., :n], g.ndim, reverse=True)
    flat_bar = g[..., None] * (before * behind)
    return lax.transpose(flat_bar.reshape(moved.shape), sorted(range(x.ndim), key=order.__getitem__))


def scanned(combine):
    """A cumulative operation is an associative scan, and is reversed as one, as JAX does: what that does in a tie, or
    at a zero, is the convention."""

    def forward(site, x, *, axis, reverse):
        (y,), pullback = site.vjp(
            lambda x: [lax.associative_scan(combine, x, reverse=reverse, axis=axis)], site.needs, x
        )
        return y, pullback

    def backward(site, pullback, g, **_):
        return pullback(g)

    return Rule(forward, backward)


def _reduce_forward(site, *args, **params):
    n = len(args) // 2
    if any(site.needs[n:]):
        raise NotImplementedError(
            f"no cotangent for the initial values of {site}: JAX defines none. stop_gradient them."
        )
    return site.primitive.bind(*args, **params), args if site.avals[0].size else None


def _reduce_backward(site, args, *y_bars, jaxpr, dimensions, **_):
    """A reduction by any associative function is a tree of pairs, and is reversed as one."""
    if args is None:
        return [None] * len(site.avals)
    xs, starts = split(args, len(args) // 2)
    shape = xs[0].shape
    kept = [axis for axis in range(len(shape)) if axis not in dimensions]
    size = math.prod(shape[axis] for axis in dimensions)
    combine = _compat.jaxpr_fun(jaxpr)
    for _ in range(1 + len(kept)):
        combine = jax.vmap(combine)

    def pairs(xs):
        half = (xs[0].shape[0] + 1) // 2
        padding = [(0, 2 * half - xs[0].shape[0], 0)] + [(0, 0, 0)] * len(kept)
        return combine(
            *(x[:half] for x in xs), *(lax.pad(x[half:], s, padding) for x, s in zip(xs, starts, strict=True))
        )

    def tree(*xs):
        xs = [lax.transpose(x, [*dimensions, *kept]).reshape(size, *(shape[axis] for axis in kept)) for x in xs]
        while xs[0].shape[0] > 1:
            xs = pairs(xs)
        return [lax.squeeze(x, [0]) for x in xs]

    _, pullback = site.vjp(tree, site.needs[: len(xs)], *xs)
    return [*pullback(*y_bars), *[None] * len(starts)]


RULES = {
    p.reduce_p: Rule(_reduce_forward, _reduce_backward),
    p.reduce_sum_p: table(lambda g, *, site, axes: spread(g, site.avals[0].shape, axes)),
    p.reduce_max_p: Rule(_choose_forward, _choose_backward),
    p.reduce_min_p: Rule(_choose_forward, _choose_backward),
    p.reduce_prod_p: table(product_bar),
    # y_i = x_1 + ... + x_i  =>  x_bar_i = g_i + ... + g_n
    p.cumsum_p: table(lambda g, *, axis, reverse: lax.cumsum(g, axis, reverse=not reverse)),
    p.cumprod_p: scanned(lax.mul),
    p.cummax_p: scanned(lax.max),
    p.cummin_p: scanned(lax.min),
    p.cumlogsumexp_p: scanned(jnp.logaddexp),
}  # fmt: skip
