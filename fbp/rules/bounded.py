"""`while_loop`: a loop whose number of steps is known only at run time, but bounded, so that it can be run backwards.

h_t = f(w, h_{t-1}), t = 1..T, T ≤ max_steps  =>  w̄_t, h̄_{t-1} = pullback_t(h̄_t), t = T..1, and w̄ = Σ w̄_t.

To run backwards through T steps takes the states h_0..h_{T-1}. Of those the forward pass keeps every k-th, k = √max_steps;
the backward pass runs each stretch of k steps again to have those in between, and then each step to reverse it: memory
for 2 √max_steps states, at the price of two more forward passes (Griewank & Walther 2000, section 1, with one level).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from fbp.core import Rule, Stopped, op, zeros
from fbp.rules.common import split
from fbp.rules.loops import carry_fixpoint
from fbp.rules.staging import Staged, stage

T = TypeVar("T")


def while_loop(cond_fun: Callable[[T], Any], body_fun: Callable[[T], T], init_val: T, *, max_steps: int) -> T:
    """`jax.lax.while_loop` of at most `max_steps` steps, which can be differentiated in reverse mode, by fbp.

    It takes as many steps as the loop has, and stops after `max_steps` even where `cond_fun` still holds: ask
    `cond_fun` of the result if that may be. Forward it costs what `jax.lax.while_loop` costs; differentiated, it keeps
    2 √max_steps states in memory, and the backward pass takes three forward passes and one reverse.

    Args:
      cond_fun: state -> a boolean: whether to go on.
      body_fun: state -> the next one, of the same shapes and dtypes.
      init_val: the first state, a pytree of arrays.
      max_steps: the largest number of steps; static.

    Raises TypeError if `max_steps` is not an integer, or where `jax.lax.while_loop` does; ValueError if it is negative.

    >>> import fbp
    >>> def newton(x):  # √x: stops when it has converged
    ...     off = lambda y: abs(y * y - x) > 1e-6
    ...     return fbp.while_loop(off, lambda y: (y + x / y) / 2, x, max_steps=50)
    >>> print(f"{fbp.grad(newton)(4.0):.4f}")
    0.2500
    """
    if not hasattr(max_steps, "__index__"):
        raise TypeError(
            f"max_steps is the largest number of steps, an integer known at trace time, but got {max_steps!r}."
        )
    if max_steps < 0:
        raise ValueError(f"max_steps is the largest number of steps, but got {max_steps}.")
    types, tree = jax.tree.flatten(jax.eval_shape(functools.partial(lax.while_loop, cond_fun, body_fun), init_val))
    init = [jnp.asarray(x, t.dtype) for x, t in zip(jax.tree.leaves(init_val), types, strict=True)]
    avals = [jax.typeof(x) for x in init]
    cond, cond_consts = stage(lambda *state: [cond_fun(jax.tree.unflatten(tree, state))], *avals)
    body, consts = stage(lambda *state: jax.tree.leaves(body_fun(jax.tree.unflatten(tree, state))), *avals)
    loop = Loop(cond, body, int(max_steps))
    return jax.tree.unflatten(tree, bounded_while(*cond_consts, *consts, *init, loop=loop))


class Loop(NamedTuple):
    """What is known of a loop before its values are."""

    cond: Staged
    body: Staged
    max_steps: int

    @property
    def stretch(self) -> int:
        """The number of steps from one kept state to the next."""
        return max(1, math.isqrt(self.max_steps))

    @property
    def stretches(self) -> int:
        return max(1, -(-self.max_steps // self.stretch))

    def split(self, args):
        return split(args, self.cond.n_consts, self.body.n_consts)

    def goes_on(self, consts, state):
        return self.cond(*consts, *state)[0]


@op
def bounded_while(*args, loop):
    cond_consts, consts, init = loop.split(args)
    goes_on = lambda at: (at[0] < loop.max_steps) & loop.goes_on(cond_consts, at[1])
    _, state = lax.while_loop(goes_on, lambda at: (at[0] + 1, loop.body(*consts, *at[1])), (0, init))
    return state


@functools.lru_cache(maxsize=4096)
def _wanted(vjp, loop, needs, avals):
    return carry_fixpoint(
        vjp,
        loop.body,
        needs[loop.cond.n_consts :],
        avals[loop.cond.n_consts :],
        loop.body.n_consts,
        len(loop.body.jaxpr.outvars),
    )


def _room(x, n):
    return jnp.zeros((n, *x.shape), x.dtype)


def _forward(site, *args, loop):
    """Stretches of steps, the first state of each kept. The loops are bounded ones, to be differentiated in their turn."""
    cond_consts, consts, init = loop.split(args)

    def goes_on(at):
        t, state = at
        return (t < loop.max_steps) & loop.goes_on(cond_consts, state)

    def run(at):
        kept, t, state = at
        kept = [lax.dynamic_update_index_in_dim(k, x, t // loop.stretch, 0) for k, x in zip(kept, state, strict=True)]
        step = lambda at: (at[0] + 1, loop.body(*consts, *at[1]))
        return kept, *while_loop(goes_on, step, (t, state), max_steps=loop.stretch)

    start = [_room(x, loop.stretches) for x in init], jnp.int32(0), init
    kept, t, state = while_loop(lambda at: goes_on(at[1:]), run, start, max_steps=loop.stretches)
    _, flows = _wanted(site.vjp, loop, site.needs, site.avals)
    return [x if flow else Stopped(x) for x, flow in zip(state, flows, strict=True)], (consts, kept, t)


def _backward(site, residuals, *y_bars, loop):
    consts, kept, steps = residuals
    needs, _ = _wanted(site.vjp, loop, site.needs, site.avals)
    avals = [aval.update(weak_type=False) for aval in site.avals[loop.cond.n_consts :]]
    bars = [zeros(aval) if needed else None for aval, needed in zip(avals, needs, strict=True)]
    const_bars, bars = split(bars, loop.body.n_consts)
    bars = [zero if y_bar is None else y_bar for y_bar, zero in zip(y_bars, bars, strict=True)]

    def back(at):
        """One stretch: run again for its states, then backwards."""
        left, const_bars, bars = at
        first = (left - 1) * loop.stretch
        length = jnp.minimum(loop.stretch, steps - first)

        def note(at):
            t, states, state = at
            states = [lax.dynamic_update_index_in_dim(s, x, t, 0) for s, x in zip(states, state, strict=True)]
            return t + 1, states, loop.body(*consts, *state)

        start = [lax.dynamic_index_in_dim(k, left - 1, keepdims=False) for k in kept]
        begin = jnp.int32(0), [_room(x, loop.stretch) for x in start], start
        _, states, _ = while_loop(lambda at: at[0] < length, note, begin, max_steps=loop.stretch)

        def reverse(at):
            t, const_bars, bars = at
            state = [lax.dynamic_index_in_dim(s, t - 1, keepdims=False) for s in states]
            _, pullback = site.vjp(loop.body, needs, *consts, *state)
            new_const_bars, new_bars = split(pullback(*bars), loop.body.n_consts)
            const_bars = [a if b is None else lax.add(a, b) for a, b in zip(const_bars, new_const_bars, strict=True)]
            new_bars = [
                zeros(jax.typeof(bar)) if new is None and bar is not None else new
                for bar, new in zip(bars, new_bars, strict=True)
            ]
            return t - 1, const_bars, new_bars

        bars = while_loop(lambda at: at[0] > 0, reverse, (length, const_bars, bars), max_steps=loop.stretch)
        return left - 1, *bars[1:]

    begin = -(-steps // loop.stretch), const_bars, bars
    _, const_bars, bars = while_loop(lambda at: at[0] > 0, back, begin, max_steps=loop.stretches)
    return [*[None] * loop.cond.n_consts, *const_bars, *bars]


RULES = {bounded_while: Rule(_forward, _backward)}
