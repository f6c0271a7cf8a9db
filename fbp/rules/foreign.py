"""Primitives of other libraries, which told JAX how to differentiate them (`jax.interpreters.ad`) and told us nothing.

Their tangent map, ẋ ↦ ẏ, is linear, so its vjp at any point, say ẋ = 0, is its transpose. Where the map applies the same
primitive to tangents, that is linear in them, and its author has said how to transpose it.
"""

import functools
import inspect

from jax.extend.core import Primitive
from jax.interpreters import ad

from fbp import _compat
from fbp.core import Rule, Stopped, value, zero_tangent
from fbp.rules.common import split


@functools.lru_cache(maxsize=4096)
def borrowed(primitive: Primitive) -> Rule | None:
    """The rule that follows from what another library told JAX of its primitive, if it did. JAX's own have rules of ours."""
    told = _functions(ad.primitive_jvps.get(primitive)), _functions(ad.primitive_transposes.get(primitive))
    foreign = any(not _compat.is_internal(f) for functions in told for f in functions)
    return Rule(_forward, _backward) if foreign and primitive in ad.primitive_jvps else None


def _functions(rule) -> list:
    """The functions that a rule of JAX is made of: a partial application holds those of the primitive's author."""
    if isinstance(rule, functools.partial):
        return [*_functions(rule.func), *(f for arg in rule.args for f in _functions(arg))]
    if isinstance(rule, list | tuple):
        return [f for part in rule for f in _functions(part)]
    return [rule] if inspect.isroutine(rule) and hasattr(rule, "__module__") else []


def _listed(ys):
    return list(ys) if isinstance(ys, list | tuple) else [ys]


def _forward(site, *xs, **params):
    def tangent_map(*tangents):
        tangents = [
            t if needed else _compat.internal_zero(aval)
            for t, needed, aval in zip(tangents, site.needs, site.avals, strict=True)
        ]
        ys, y_dots = map(_listed, ad.primitive_jvps[site.primitive](xs, tangents, **params))
        return [*ys, *(zero_tangent(dot.aval) if _compat.is_internal_zero(dot) else dot for dot in y_dots)]

    vjp = site.vjp.with_rules({site.primitive: Rule(_linear_forward, _linear_backward)})
    # In the place of an input that is not differentiated stands itself: a token, say, has no tangent.
    dots = [zero_tangent(aval) if needed else x for x, needed, aval in zip(xs, site.needs, site.avals, strict=True)]
    outputs, pullback = vjp(tangent_map, site.needs, *dots)
    ys, y_dots = split(outputs, len(outputs) // 2)
    ys = [y if isinstance(dot, Stopped) else value(y) for y, dot in zip(ys, y_dots, strict=True)]
    return ys, pullback.only(slice(len(ys), None))


def _backward(site, pullback, *y_bars, **_):
    return pullback(*y_bars)


def _linear_forward(site, *xs, **params):
    if site.primitive not in ad.primitive_transposes:
        raise NotImplementedError(
            f"no vjp rule for {site}: it has a tangent map, which applies it to tangents, but no transpose. Define one with "
            "jax.interpreters.ad, or pass rules=RULES | {...}."
        )
    ys = site.primitive.bind(*xs, **params)
    return ys, [None if needed else x for x, needed in zip(xs, site.needs, strict=True)]


def _linear_backward(site, args, *y_bars, **params):
    zero = _compat.internal_zero
    y_bars = [zero(aval) if bar is None else bar for bar, aval in zip(y_bars, site.out_avals, strict=True)]
    args = [_compat.undefined(aval) if n else x for x, n, aval in zip(args, site.needs, site.avals, strict=True)]
    cotangents = y_bars if site.primitive.multiple_results else y_bars[0]
    x_bars = ad.primitive_transposes[site.primitive](cotangents, *args, **params)
    return [None if _compat.is_internal_zero(x) else x for x in x_bars]
