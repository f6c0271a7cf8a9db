"""Calls: operations whose work is an inner function. jit, functions with a derivative of their own, and linear
solves.

y = f(x) for an inner f  =>  x_bar = pullback of f. `site.vjp` differentiates the inner function with the rulebook in
force, so a replaced rule reaches inside; its pullback is a pytree, and is the outer rule's residuals.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import primitives as p

from fbp import _compat
from fbp.core import Rule, Stopped, is_inexact, value, zero_tangent, zeros
from fbp.rules.common import split, written_out
from fbp.rules.residuals import jitted


@jax.jit
def apply_pullback(pullback, y_bars):
    return pullback(*y_bars)


# The same jaxpr, met again (forty-eight equal layers), is traced and compiled once: the cached function is the same
# object, and jit knows it. Bounded, because the cache keeps its jaxprs alive.
@functools.lru_cache(maxsize=4096)
def _jitted_forward(vjp, jaxpr, needs, name):
    def forward(*xs):
        return vjp(_compat.jaxpr_fun(jaxpr), needs, *xs)

    forward.__name__ = forward.__qualname__ = name
    return jitted(forward)


def _jit_forward(site, *xs, jaxpr, name, **_):
    return _jitted_forward(site.vjp, jaxpr, site.needs, name)(*xs)


def _jit_backward(site, pullback, *y_bars, **_):
    return apply_pullback(pullback, y_bars)


def _jit_inside(*, jaxpr, inline, **_):
    """A function that JAX puts in the place of its call, as most of jax.numpy, is recorded so."""
    return _compat.jaxpr_in_place(jaxpr) if _compat.is_inlined(inline) else None


def _call_forward(site, *xs, call_jaxpr, **_):
    return site.vjp(_compat.jaxpr_fun(call_jaxpr), site.needs, *xs)


def _call_backward(site, pullback, *y_bars, **_):
    return pullback(*y_bars)


def _linear_forward(site, *xs, fun, **_):
    return site.vjp(fun.call_wrapped, site.needs, *xs)


def _custom_jvp_forward(site, *xs, jvp, symbolic_zeros, **_):
    """The tangent map ẋ ↦ ẏ that the user wrote is linear, and the transpose of a linear map is its vjp, at any point:
    at ẋ = 0. The same run gives the primal outputs; under jit, the tangents of zero are dead code.

    A function that the map applies to tangents is linear in them, and differentiated as it stands: its own jvp, if it has
    one, may well apply it to tangents again, as that of a linear function does, and so on forever."""

    def tangent_map(*tangents):
        if symbolic_zeros:
            tangents = [
                t if needed else SymbolicZero(jax.typeof(t)) for t, needed in zip(tangents, site.needs, strict=True)
            ]
        outputs = jvp.call_wrapped(*xs, *tangents)
        return [zero_tangent(y.aval) if isinstance(y, SymbolicZero) else y for y in outputs]

    vjp = site.vjp.with_rules({site.primitive: Rule(_linear_forward, _call_backward)})
    outputs, pullback = vjp(tangent_map, site.needs, *map(zero_tangent, site.avals))
    n = len(outputs) // 2
    ys = [y if isinstance(t, Stopped) else value(y) for y, t in zip(outputs[:n], outputs[n:], strict=True)]
    return ys, pullback.only(slice(n, None))


def _custom_vjp_forward(site, *xs, fwd, out_trees, **_):
    """The user's fwd, called with (value, whether a cotangent is wanted) for each input; it gives residuals, then ys.
    JAX leaves out the residuals that are inputs, and says which."""
    outputs = fwd.call_wrapped(*(arg for pair in zip(xs, site.needs, strict=True) for arg in pair))
    _, residuals_tree, inputs = out_trees()
    n = residuals_tree.num_leaves - sum(i is not None for i in inputs)
    own = iter(outputs[:n])
    return outputs[n:], [next(own) if i is None else xs[i] for i in inputs]


def _custom_vjp_backward(site, residuals, *y_bars, bwd, symbolic_zeros, **_):
    """The user's bwd, which expects a zero written out, or as a SymbolicZero where it asked for those."""
    zero = (lambda aval: SymbolicZero(aval.to_tangent_aval())) if symbolic_zeros else zeros
    y_bars = [zero(aval) if y_bar is None else y_bar for y_bar, aval in zip(y_bars, site.out_avals, strict=True)]
    x_bars = _compat.call_bwd(bwd, *residuals, *y_bars)
    return [_as_cotangent(x, aval) for x, aval in zip(x_bars, site.avals, strict=True)]


def _as_cotangent(x, aval):
    """What a user's bwd returns for an input: a zero of some kind, a Python number, or an array of another dtype."""
    if isinstance(x, SymbolicZero) or _compat.is_internal_zero(x) or not is_inexact(aval):
        return None
    return lax.convert_element_type(x, aval.dtype) if jnp.result_type(x) != aval.dtype else x


def _linear_solve_forward(site, *args, const_lengths, **params):
    ys = site.primitive.bind(*args, const_lengths=const_lengths, **params)
    n = len(args) - sum(const_lengths)  # what follows x is what the solver has to say beside it
    xs = ys[:n] if any(site.needs[: const_lengths.matvec]) else None
    return [*ys[:n], *map(Stopped, ys[n:])], (args[: sum(const_lengths)], xs)


def _linear_solve_backward(site, residuals, *y_bars, const_lengths, jaxprs):
    """A(w) x = b  =>  Aᵀ b_bar = x_bar and, as dA x + A dx = db, w_bar = -(pullback of w ↦ A(w) x)(b_bar)."""
    if jaxprs.transpose_solve is None:
        raise TypeError(
            f"transpose_solve required for backwards mode automatic differentiation of custom_linear_solve: {site} has none. "
            "Pass it, or symmetric=True."
        )
    consts, xs = residuals
    w, vecmat, solve, transpose_solve = split(consts, *const_lengths[:-1])
    n = len(site.avals) - len(consts)
    x_bars = written_out(y_bars[:n], site.out_avals[:n])
    transposed = {"const_lengths": const_lengths.transpose(), "jaxprs": jaxprs.transpose()}
    solved = site.primitive.bind(*vecmat, *w, *transpose_solve, *solve, *x_bars, **transposed)
    b_bars = solved[:n]
    if xs is None:
        return [*[None] * len(consts), *b_bars]
    _, pullback = site.vjp(lambda *w: _compat.jaxpr_fun(jaxprs.matvec)(*w, *xs), site.needs[: len(w)], *w)
    w_bars = pullback(*map(lax.neg, b_bars))
    return [*w_bars, *[None] * (len(consts) - len(w)), *b_bars]


def _linear_call_forward(site, *args, num_callee_consts, num_res, **params):
    """y = f(r, x), linear in x, with a transpose that the user wrote."""
    n = num_callee_consts + num_res
    if any(site.needs[:n]):
        raise NotImplementedError(f"no cotangent for the residuals of {site}, only for its linear arguments.")
    ys = site.primitive.bind(*args, num_callee_consts=num_callee_consts, num_res=num_res, **params)
    return ys, args[:n]


def _linear_call_backward(site, args, *y_bars, callee, transpose_thunk, num_callee_consts, num_res):
    consts, residuals = split(args, num_callee_consts)
    transpose, own_consts = transpose_thunk()
    back = {"callee": transpose, "transpose_thunk": lambda: (callee, consts)}
    sizes = {"num_callee_consts": len(own_consts), "num_res": num_res}
    return [
        *[None] * len(args),
        *site.primitive.bind(*own_consts, *residuals, *written_out(y_bars, site.out_avals), **back, **sizes),
    ]


def _outside_forward(site, *xs, **params):
    kind = {"pure_callback": "Pure callbacks", "io_callback": "IO callbacks"}.get(str(site.primitive), "FFI calls")
    raise ValueError(
        f"{kind} do not support JVP. Please use `jax.custom_jvp` to use callbacks while taking gradients. (Or jax.custom_vjp, "
        f"or stop_gradient its inputs: {site} is computed outside of JAX, and has no cotangents.)"
    )


def _outside_backward(site, *_, **__):
    raise AssertionError(f"{site} has no forward pass.")


RULES = {
    p.jit_p: Rule(_jit_forward, _jit_backward, _jit_inside),
    p.closed_call_p: Rule(_call_forward, _call_backward),
    **_compat.where_known(
        {"program_order_p": Rule(_call_forward, _call_backward)}
    ),  # the order is the forward pass's alone
    p.custom_jvp_call_p: Rule(_custom_jvp_forward, _call_backward),
    p.custom_vjp_call_p: Rule(_custom_vjp_forward, _custom_vjp_backward),
    _compat.linear_call_p: Rule(_linear_call_forward, _linear_call_backward),
    p.linear_solve_p: Rule(_linear_solve_forward, _linear_solve_backward),
    _compat.pure_callback_p: Rule(_outside_forward, _outside_backward),
    _compat.io_callback_p: Rule(_outside_forward, _outside_backward),
}
