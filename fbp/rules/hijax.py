"""Operations defined outside of JAX, as objects with rules of their own (`jax.experimental.hijax`).

An object that brings a backward pass is taken at its word. One that only has a tangent map, ẋ ↦ ẏ, is reversed through
that: it is linear, so its vjp at any point, say ẋ = 0, is its transpose. Inside of it the same operation may be met
again, applied to tangents; there it is linear in them, and has a transpose to say so.
"""

import functools
from typing import NamedTuple

import jax

from fbp import _compat
from fbp.core import Rule, Stopped, value, zero_tangent
from fbp.rules.common import split


class Linear(NamedTuple):
    """The residuals of an operation that is linear in its wanted inputs: the others, with None for the wanted."""

    args: list


class Own(NamedTuple):
    """The residuals of a backward pass that the operation brings along."""

    residuals: list


def _forward(site, *xs, _prim, linear=()):
    args = _prim.in_tree.unflatten(xs)
    if type(_prim) in linear:
        ys = _prim.out_tree.flatten_up_to(_prim(*args))
        return ys, Linear([None if needed else x for x, needed in zip(xs, site.needs, strict=True)])
    if not _compat.has_own_vjp(_prim):
        return _by_tangent_map(site, xs, _prim, (*linear, type(_prim)))
    ys, residuals, *more = _prim.vjp_fwd(_prim.in_tree.unflatten(site.needs), *args)
    flows = jax.tree.leaves(jax.tree.broadcast(more[0] if more else True, ys))
    ys = _prim.out_tree.flatten_up_to(ys)
    return [y if flow else Stopped(y) for y, flow in zip(ys, flows, strict=True)], Own([residuals, *more[1:]])


def _by_tangent_map(site, xs, prim, linear):
    def tangent_map(*tangents):
        tangents = [
            t if needed else _compat.internal_zero(aval)
            for t, needed, aval in zip(tangents, site.needs, site.avals, strict=True)
        ]
        ys, y_dots = prim.jvp(prim.in_tree.unflatten(xs), prim.in_tree.unflatten(tangents))
        y_dots = prim.out_tree.flatten_up_to(y_dots)
        y_dots = [zero_tangent(dot.aval) if _compat.is_internal_zero(dot) else dot for dot in y_dots]
        return [*prim.out_tree.flatten_up_to(ys), *y_dots]

    vjp = site.vjp.with_rules({site.primitive: Rule(functools.partial(_forward, linear=linear), _backward)})
    outputs, pullback = vjp(tangent_map, site.needs, *map(zero_tangent, site.avals))
    ys, y_dots = split(outputs, len(outputs) // 2)
    ys = [y if isinstance(dot, Stopped) else value(y) for y, dot in zip(ys, y_dots, strict=True)]
    return ys, pullback.only(slice(len(ys), None))


def _backward(site, kept, *y_bars, _prim):
    if not isinstance(kept, Linear | Own):
        return kept(*y_bars)
    zero = _compat.internal_zero
    y_bars = [zero(aval) if bar is None else bar for bar, aval in zip(y_bars, site.out_avals, strict=True)]
    y_bars = _prim.out_tree.unflatten(y_bars)
    # The operation adds the cotangents of its inputs to these.
    sums = [
        _compat.ValAccum(aval.to_tangent_aval()) if n else None for aval, n in zip(site.avals, site.needs, strict=True)
    ]
    if isinstance(kept, Linear):
        args = [x if s is None else s for x, s in zip(kept.args, sums, strict=True)]
        _prim.transpose(y_bars, *_prim.in_tree.unflatten(args))
    else:
        args = [
            _compat.NullAccum(a.to_tangent_aval()) if s is None else s for a, s in zip(site.avals, sums, strict=True)
        ]
        _prim.vjp_bwd(*kept.residuals, y_bars, *_prim.in_tree.unflatten(args))
    x_bars = [None if s is None else s.freeze() for s in sums]
    return [None if _compat.is_internal_zero(x) else x for x in x_bars]


RULES = {_compat.call_hi_primitive_p: Rule(_forward, _backward)}
