"""Recurrent nets over time, of which the loop backward does only what has to wait for the step after it.

    p_t = x_t W + h_{t-1} U + b,   s_t = step(p_t, s_{t-1}),   h_t the first of the states s_t

x W is one product before the loop. Going back, the loop computes the cotangents δ_t = p̄_t and writes them down; the rest is
one product each after it (Werbos 1990; Appleyard et al. 2016). Or both are of so many steps as the cache has room for:

    δ_t = step's pullback of s̄_t,   h̄_{t-1} += δ_t Uᵀ,   W̄ = Σ x_tᵀ δ_t,   Ū = Σ h_{t-1}ᵀ δ_t,   b̄ = Σ δ_t,   x̄ = δ Wᵀ

Kept are x, the states and the gates of each step. p is made of blocks, one for each gate; but in a GRU the candidate has
two, n_x of x alone and n_h of h alone: x is in the last blocks, h in the first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fbp.core import op
from fbp.ops.common import at_least_float32, over_chunks, staged
from fbp.rules import choices
from fbp.rules.common import written_out


def elman(
    x: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array | None = None,
    carry: jax.Array | None = None,
    *,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """h' = tanh(x W + h U + b) (Elman 1990): the last h, and all of them in the order of x.

    x: [time, ..., inputs], kernel W: [inputs, features], recurrent_kernel U: [features, features], bias: [features],
    carry, h before the first step: [..., features], zeros by default; result: carry, [time, ..., features]. All of one
    dtype; sums are in float32 at least. reverse: from the last step to the first. unroll: steps per iteration of the loop.

    Raises TypeError for dtypes that differ, ValueError for shapes that do not go together.

    >>> h, hs = elman(jnp.ones((5, 2, 3)), jnp.zeros((3, 4)), jnp.zeros((4, 4)), jnp.ones(4))
    >>> hs.shape, round(float(h[0, 0]), 3)
    ((5, 2, 4), 0.762)
    """
    hs, h = _over_time("elman", x, kernel, recurrent_kernel, bias, (carry,), reverse, unroll)
    return h, hs


def lstm(
    x: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array | None = None,
    carry: tuple[jax.Array, jax.Array] | None = None,
    *,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """i, f, o = σ(x W + h U + b), g = tanh(x W + h U + b); c' = f c + i g, h' = o tanh c' (Gers et al. 2000).

    kernel, recurrent_kernel and bias are as in `elman`, those of i, f, g, o next to each other: [..., 4 features]. The
    carry is (c, h).

    >>> (c, h), hs = lstm(jnp.ones((5, 2, 3)), jnp.ones((3, 16)), jnp.ones((4, 16)))
    >>> hs.shape, round(float(c[0, 0]), 2)
    ((5, 2, 4), 4.93)
    """
    c, h = carry if carry is not None else (None, None)
    hs, h, c = _over_time("lstm", x, kernel, recurrent_kernel, bias, (h, c), reverse, unroll)
    return (c, h), hs


def gru(
    x: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array | None = None,
    recurrent_bias: jax.Array | None = None,
    carry: jax.Array | None = None,
    *,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """r, z = σ(x W + b + h U), n = tanh(x W + b + r (h U + b')); h' = (1 - z) n + z h (Cho et al. 2014).

    kernel, recurrent_kernel and bias are as in `elman`, those of r, z, n next to each other: [..., 3 features];
    recurrent_bias b': [features].

    >>> h, hs = gru(jnp.ones((5, 2, 3)), jnp.ones((3, 12)), jnp.ones((4, 12)))
    >>> hs.shape
    (5, 2, 4)
    """
    features = recurrent_kernel.shape[0]
    if bias is not None or recurrent_bias is not None:
        bias = jnp.zeros(3 * features, x.dtype) if bias is None else bias
        recurrent_bias = jnp.zeros(features, x.dtype) if recurrent_bias is None else recurrent_bias
        bias = jnp.concatenate([recurrent_bias, bias])
    recurrent_kernel = jnp.roll(recurrent_kernel, features, 1)  # n, r, z: h is in the first blocks
    hs, h = _over_time("gru", x, kernel, recurrent_kernel, bias, (carry,), reverse, unroll)
    return h, hs


def _over_time(name, x, kernel, recurrent_kernel, bias, states, reverse, unroll):
    """All h, and the last states; x may have no batch, or one of several axes."""
    cell, features = CELLS[name], recurrent_kernel.shape[0]
    arrays = {"kernel": kernel, "recurrent_kernel": recurrent_kernel, "bias": bias}
    arrays |= {f"carry[{i}]" if len(states) > 1 else "carry": s for i, s in enumerate(states)}
    given = {key: a for key, a in arrays.items() if a is not None}
    if wrong := {key: str(a.dtype) for key, a in given.items() if a.dtype != x.dtype}:
        raise TypeError(f"{name} computes in the dtype of x, {x.dtype}, but got {wrong}. Cast them to one dtype.")
    batch = x.shape[1:-1]
    shapes = {
        "kernel": (x.shape[-1], cell.of_x * features),
        "recurrent_kernel": (features, cell.of_h * features),
        "bias": (cell.blocks * features,),
    }
    if wrong := [
        f"{key} {a.shape}, not {shape}"
        for key, a in given.items()
        if a.shape != (shape := shapes.get(key, (*batch, features)))
    ]:
        raise ValueError(f"{name} of x {x.shape} with {features} features: {'; '.join(wrong)}.")
    flat = lambda z, *lead: z.reshape(*lead, math.prod(batch), z.shape[-1])
    blank = jnp.zeros((math.prod(batch), features), x.dtype)
    run = recurrent if choices.recurrent(name) else recurrent.call
    chunk_size = choices.recurrent_steps(len(x), 4 * math.prod(batch) * cell.blocks * features)
    hs, *states = run(
        flat(x, len(x)),
        kernel,
        recurrent_kernel,
        jnp.zeros(shapes["bias"], x.dtype) if bias is None else bias,
        *(blank if s is None else flat(s) for s in states),
        options=Options(name, reverse, unroll, chunk_size),
    )
    return [hs.reshape(len(x), *batch, features), *(s.reshape(*batch, features) for s in states)]


class Cell(NamedTuple):
    """How a step is run and reversed.

    step: (blocks of p, states) -> states, gates.
    reverse: (gates, states before the step, states after it, state_bars) -> cotangents of the blocks, and of the states
        before, but for what comes to h by its product with U.
    """

    step: Callable
    reverse: Callable
    blocks: int
    of_x: int  # the last so many blocks have a part of x
    of_h: int  # the first so many blocks have a part of h
    after: tuple[int, ...]  # the states of which `reverse` reads what they are after the step


def _elman(p, states):
    return [jnp.tanh(p[0])], []


def _elman_reverse(gates, before, after, state_bars):
    """h' = tanh p."""
    return [state_bars[0] * (1 - after[0] * after[0])], [None]


def _lstm(p, states):
    i, f, g, o = jax.nn.sigmoid(p[0]), jax.nn.sigmoid(p[1]), jnp.tanh(p[2]), jax.nn.sigmoid(p[3])
    c = f * states[1] + i * g
    return [o * jnp.tanh(c), c], [i, f, g, o]


def _lstm_reverse(gates, before, after, state_bars):
    """i, f, o = σ(p), g = tanh p; c' = f c + i g, h' = o tanh c'."""
    (i, f, g, o), (_, c), (c_after,), (h_bar, c_bar) = gates, before, after, state_bars
    y = jnp.tanh(c_after)
    c_bar = c_bar + h_bar * o * (1 - y * y)
    of_sigmoid = lambda bar, s: bar * s * (1 - s)
    p_bars = [of_sigmoid(c_bar * g, i), of_sigmoid(c_bar * c, f), c_bar * i * (1 - g * g), of_sigmoid(h_bar * y, o)]
    return p_bars, [None, c_bar * f]


def _gru(p, states):
    n_h, r, z, n_x = p
    r, z = jax.nn.sigmoid(r), jax.nn.sigmoid(z)
    n = jnp.tanh(n_x + r * n_h)
    return [(1 - z) * n + z * states[0]], [n_h, r, z, n]


def _gru_reverse(gates, before, after, state_bars):
    """r, z = σ(p), n = tanh(n_x + r n_h); h' = (1 - z) n + z h."""
    (n_h, r, z, n), (h,), (h_bar,) = gates, before, state_bars
    n_bar = h_bar * (1 - z) * (1 - n * n)
    return [r * n_bar, n_bar * n_h * r * (1 - r), h_bar * (h - n) * z * (1 - z), n_bar], [h_bar * z]


CELLS = {
    "elman": Cell(_elman, _elman_reverse, blocks=1, of_x=1, of_h=1, after=(0,)),
    "lstm": Cell(_lstm, _lstm_reverse, blocks=4, of_x=4, of_h=4, after=(1,)),
    "gru": Cell(_gru, _gru_reverse, blocks=4, of_x=3, of_h=3, after=()),
}


class Options(NamedTuple):
    cell: str
    reverse: bool
    unroll: int
    chunk_size: int  # how many steps there are between the products of all of them


def _blocks(p, features):
    return [p[:, i : i + features] for i in range(0, p.shape[1], features)]


def _run(x, kernel, recurrent_kernel, bias, states, options, keep=False):
    """All h, the last states, and what is kept: of each step the gates, and the states before it other than h."""
    cell, features = CELLS[options.cell], len(recurrent_kernel)
    product = functools.partial(jnp.matmul, preferred_element_type=at_least_float32(x.dtype))
    biases = bias.astype(at_least_float32(x.dtype)).reshape(cell.blocks, features)

    def step(states, of_x):
        of_x = [0] * (cell.blocks - cell.of_x) + _blocks(of_x, features)
        of_h = _blocks(product(states[0], recurrent_kernel), features) + [0] * (cell.blocks - cell.of_h)
        p = [a + b + c for a, b, c in zip(of_x, of_h, biases, strict=True)]
        after, gates = cell.step(p, [s.astype(biases.dtype) for s in states])
        after = [s.astype(x.dtype) for s in after]
        kept = [g.astype(x.dtype) for g in gates], *states[1:]
        return after, (after[0], kept if keep else ())

    def some_steps(states, x):
        return lax.scan(step, states, product(x, kernel), reverse=options.reverse, unroll=options.unroll)

    states, (hs, kept) = over_chunks(some_steps, list(states), x, options.chunk_size, reverse=options.reverse)
    return [hs, *states], kept


def _forward(site, x, kernel, recurrent_kernel, bias, *states, options):
    ys, kept = _run(x, kernel, recurrent_kernel, bias, states, options, keep=True)
    hs, *states_after = ys
    x_needed, kernel_needed, *_ = site.needs
    after = [states_after[i] for i in CELLS[options.cell].after]
    return ys, (
        x if kernel_needed else None,
        kernel if x_needed else None,
        recurrent_kernel,
        states[0],
        hs,
        after,
        kept,
    )


def _backward(site, residuals, h_bars, *state_bars, options):
    x, kernel, recurrent_kernel, h, hs, after, (gates, *others) = residuals
    cell, features, dtype = CELLS[options.cell], len(recurrent_kernel), h.dtype
    wide = at_least_float32(dtype)
    product = functools.partial(jnp.matmul, preferred_element_type=wide)
    only_h = (cell.blocks - cell.of_x) * features
    recurrent_kernel_t = recurrent_kernel.T  # once: in the loop XLA would put it in this order in every step
    hs_before = jnp.concatenate([hs, h[None]])[1:] if options.reverse else jnp.concatenate([h[None], hs])[:-1]

    def step(carry, inputs):
        after, (h_bar, *bars) = carry
        gates, before, new_h_bar = inputs
        h_bar = h_bar if new_h_bar is None else h_bar + new_h_bar.astype(wide)
        gates, before = jax.tree.map(lambda s: s.astype(wide), (gates, before))
        p_bars, (direct, *bars) = cell.reverse(gates, before, after, [h_bar, *bars])
        delta = jnp.concatenate(p_bars, 1).astype(dtype)
        h_bar = product(delta[:, : cell.of_h * features], recurrent_kernel_t)
        bars = [h_bar if direct is None else h_bar + direct, *bars]
        return ([before[i] for i in cell.after], bars), jnp.split(delta, [only_h, cell.of_h * features], 1)

    x_needed, kernel_needed, recurrent_needed, bias_needed, *_ = site.needs
    over_steps = lambda x, deltas: jnp.concatenate(
        [jnp.einsum("tbi,tbj->ij", x, delta, preferred_element_type=wide) for delta in deltas], 1
    )

    def some_steps(carry, inputs):
        states, sums = carry
        x, gates, before, h_bars = inputs
        inputs = gates, before, h_bars
        states, deltas = lax.scan(step, states, inputs, reverse=not options.reverse, unroll=options.unroll)
        new = [
            over_steps(x, deltas[1:]) if kernel_needed else None,
            over_steps(before[0], deltas[:2]) if recurrent_needed else None,
            jnp.concatenate([jnp.sum(delta, (0, 1), dtype=wide) for delta in deltas]) if bias_needed else None,
        ]
        x_bar, shared = None, deltas[1].shape[-1]
        if x_needed:
            x_bar = product(deltas[1], kernel[:, :shared].T) + product(deltas[2], kernel[:, shared:].T)
            x_bar = x_bar.astype(dtype)
        return (states, jax.tree.map(jnp.add, sums, new)), x_bar

    zeros = lambda aval, needed: jnp.zeros(aval.shape, wide) if needed else None
    sums = [*map(zeros, site.avals[1:4], site.needs[1:4])]
    state_bars = [x.astype(wide) for x in written_out(state_bars, site.out_avals[1:])]
    carry = ([s.astype(wide) for s in after], state_bars), sums
    inputs = x, gates, [hs_before, *others], h_bars
    ((_, state_bars), sums), x_bar = over_chunks(
        some_steps, carry, inputs, options.chunk_size, reverse=not options.reverse
    )
    return [None if bar is None else bar.astype(dtype) for bar in (x_bar, *sums, *state_bars)]


@functools.partial(op, rule=staged(_forward, _backward))
def recurrent(x, kernel, recurrent_kernel, bias, *states, options):
    return _run(x, kernel, recurrent_kernel, bias, states, options)[0]
