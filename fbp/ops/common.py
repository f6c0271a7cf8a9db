"""What several operations use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import source_info_util

from fbp.core import Rule, Site
from fbp.rules.residuals import carve, refill


def staged(fwd: Callable, bwd: Callable) -> Rule:
    """A rule that is traced once for all places where it is applied to the same types: forty-eight equal layers share it.

    It must not read `site.path` or `site.source`."""

    @functools.partial(jax.jit, static_argnames=("site", "params"))
    def forward(xs, *, site, params):
        ys, residuals = fwd(site, *xs, **dict(params))
        return ys, carve(residuals, [*xs, *ys])

    @functools.partial(jax.jit, static_argnames=("site", "params"))
    def backward(residuals, y_bars, *, site, params):
        return bwd(site, residuals, *y_bars, **dict(params))

    def apply_forward(site, *xs, **params):
        ys, carved = forward(xs, site=_anywhere(site), params=tuple(params.items()))
        return ys, refill(carved, [*xs, *ys])

    def apply_backward(site, residuals, *y_bars, **params):
        return backward(residuals, y_bars, site=_anywhere(site), params=tuple(params.items()))

    return Rule(apply_forward, apply_backward)


def at_least_float32(dtype: Any) -> Any:
    """What sums of numbers of this type are added up in."""
    is_wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return dtype if is_wide else jnp.float32


def over_chunks(step: Callable, carry: Any, arrays: Any, chunk_size: int, *, reverse: bool = False) -> tuple[Any, Any]:
    """`lax.scan` of `step` over chunks of the first axis, in `reverse` from the end; the last one, if it is smaller, is taken
    by itself."""
    n = len(jax.tree.leaves(arrays)[0])
    if n <= chunk_size:
        return step(carry, arrays)
    whole = n // chunk_size * chunk_size
    chunks = jax.tree.map(lambda x: x[:whole].reshape(whole // chunk_size, chunk_size, *x.shape[1:]), arrays)
    if whole == n:
        carry, ys = lax.scan(step, carry, chunks, reverse=reverse)
        return carry, jax.tree.map(lambda y: y.reshape(n, *y.shape[2:]), ys)
    last = jax.tree.map(lambda x: x[whole:], arrays)
    if reverse:
        carry, end = step(carry, last)
    carry, ys = lax.scan(step, carry, chunks, reverse=reverse)
    if not reverse:
        carry, end = step(carry, last)
    return carry, jax.tree.map(lambda y, z: jnp.concatenate([y.reshape(whole, *y.shape[2:]), z]), ys, end)


def _anywhere(site: Site) -> Site:
    return site._replace(path="", source=source_info_util.new_source_info(), out_avals=tuple(site.out_avals))
