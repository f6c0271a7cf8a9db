"""Cases for `fbp.rules.bounded`. JAX's is a scan of all the steps that may be, which changes nothing after the last."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fbp.check.case import Case, integers, normal
from fbp.rules.bounded import while_loop


def scanned(cond_fun, body_fun, init_val, *, max_steps):
    def step(state, _):
        on = cond_fun(state)
        return jax.tree.map(lambda new, old: jnp.where(on, new, old), body_fun(state), state), None

    return lax.scan(step, init_val, length=max_steps)[0]


def rnn(loop, w, x, n):
    """n steps of h = tanh(w h + x), by a count that is part of the state."""
    state = loop(lambda s: s[1] < n, lambda s: (jnp.tanh(w * s[0] + x), s[1] + 1), (x, jnp.int32(0)), max_steps=9)
    return state[0]


def until_large(loop, x):
    """Doubles as often as it takes."""
    return loop(lambda y: jnp.sum(y * y) < 50, lambda y: 2 * y, x, max_steps=20)


def nested(loop, w, x):
    inner = lambda y: until_large(loop, y) / 16
    return loop(lambda s: s[1] < 2, lambda s: (jnp.sin(w) * inner(s[0]), s[1] + 1), (x, jnp.int32(0)), max_steps=4)[0]


def case(name: str, fun: Any, args: tuple, **options: Any) -> Case:
    return Case(name, functools.partial(fun, while_loop), args, reference=functools.partial(fun, scanned), **options)


WX = (normal(3), normal(3))

CASES = [
    case("while_loop", rnn, (*WX, integers(4, 8))),
    case("while_loop/no step", rnn, (*WX, integers(0, 1))),
    case("while_loop/all steps", rnn, (*WX, integers(9, 10))),
    case("while_loop/cut short", rnn, (*WX, integers(15, 16)), mapped=False),
    case("while_loop/by value", until_large, (normal(3),)),
    case("while_loop/nested", nested, WX),
]
