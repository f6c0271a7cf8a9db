"""Deep stacks of equal blocks whose activations are not kept, but computed again on the way back.

`stack`: x_{l+1} = f(w_l, x_l), l = 1..L. Only the x_l are kept, and f is run again where it is reversed (Griewank & Walther
2000; Chen et al. 2016):

    w̄_l, x̄_l = pullback of f at (w_l, x_l) (x̄_{l+1})

`reversible`: y₁ = x₁ + f(x₂), y₂ = x₂ + g(y₁). Nothing is kept but the last y, for x is had back from y (Gomez et al. 2017,
section 3.1 and algorithm 1):

    x₂ = y₂ - g(y₁),   x₁ = y₁ - f(x₂)

Each half is of the form y = x + f(w, z), which is reversed by

    x = y - f(w, z),   x̄ = ȳ,   w̄, z̄' = pullback of f at (w, z) (ȳ),   z̄ += z̄'
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from fbp.core import Rule, op, value, zeros
from fbp.rules.common import split
from fbp.rules.staging import Staged, stage

T = TypeVar("T")


def stack(block: Callable[[Any, T], T], params: Any, x: T, *, length: int | None = None, keep_every: int = 1) -> T:
    """x ← block(params_l, x) for l = 1..L, where the backward pass computes again what is within a block.

    Args:
      block: (params of one block, x) -> x, of the same structure, shapes and dtypes. It may close over arrays: they are
        shared by all blocks, and have gradients.
      params: a pytree of arrays whose first axis is the block. Keys of random numbers may be among them.
      x: a pytree of arrays.
      length: the number of blocks, L; needed only where there are no params.
      keep_every: keep the x of every k-th block only, and reverse k blocks at a time. That is L / k of the x, and what k
        blocks keep for their reversal: least where k is about √(L · size of x / size of what one block keeps).

    The forward pass is that of `jax.lax.scan`, and so is everything for those who are not fbp. The backward pass takes one
    forward pass more.

    Raises TypeError if a block gives something of another type than it takes; ValueError if the first axes differ, or
    `keep_every` does not divide their length.

    >>> import fbp
    >>> w = jax.random.normal(jax.random.key(0), (1000, 8, 8)) / 8
    >>> loss = lambda w, x: jnp.sum(stack(lambda w, x: x + jnp.tanh(x @ w), w, x))
    >>> _, pullback = fbp.vjp(loss, w, jnp.ones((2, 8)))
    >>> sorted({leaf.shape for leaf in jax.tree.leaves(pullback)})  # w, and the input of every block
    [(1000, 2, 8), (1000, 8, 8)]
    """
    depth = _length("stack", params, length)
    if keep_every < 1 or depth % keep_every:
        raise ValueError(f"stack: keep_every={keep_every} does not divide the number of blocks, {depth}.")
    if keep_every > 1:
        depth //= keep_every
        params = jax.tree.map(lambda p: jnp.reshape(p, (depth, keep_every, *p.shape[1:])), params)
        single = block
        block = lambda params, x: lax.scan(lambda x, p: (single(p, x), None), x, params, length=keep_every)[0]
    leaves, param_tree = jax.tree.flatten(params)
    xs, tree = _strong(x)

    def flat(*args):
        inputs = jax.tree.unflatten(tree, args[len(leaves) :])
        y = block(jax.tree.unflatten(param_tree, args[: len(leaves)]), inputs)
        _check_type("stack: the block", y, inputs)
        return jax.tree.leaves(y)

    staged, consts = stage(flat, *map(_of_one, leaves), *map(jax.typeof, xs))
    ys = _stack(*consts, *leaves, *xs, block=staged, n_params=len(leaves), length=depth)
    return jax.tree.unflatten(tree, ys)


def _scan(block, n_consts, n_params, length, args):
    consts, params, x = split(args, n_consts, n_params)
    return lax.scan(lambda x, params: (block(*consts, *params, *x), None), x, params, length=length)[0]


def _stack_forward(site, *args, block, n_params, length):
    """A block that is recomputed keeps its inputs alone. (In a loop there is nothing that XLA could merge it with.)"""
    recomputed = jax.checkpoint(lambda *args: block(*args), prevent_cse=False)
    return site.vjp(lambda *args: _scan(recomputed, block.n_consts, n_params, length, args), site.needs, *args)


def _stack_backward(site, pullback, *y_bars, **_):
    return pullback(*y_bars)


@functools.partial(op, rule=Rule(_stack_forward, _stack_backward))
def _stack(*args, block, n_params, length):
    return _scan(block, block.n_consts, n_params, length, args)


# ---------------------------------------------------------------------------------------------------- reversible


def reversible(
    f: Callable[[Any, jax.Array], jax.Array],
    g: Callable[[Any, jax.Array], jax.Array],
    params: tuple[Any, Any],
    x: tuple[jax.Array, jax.Array],
    *,
    length: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """x₁ ← x₁ + f(params_f, x₂), x₂ ← x₂ + g(params_g, x₁), L times, in memory that does not grow with L.

    Args:
      f, g: (params of one block, array) -> array of the shape and dtype of x₁ and of x₂. They may close over arrays, which
        have gradients, and must be pure: they are run again.
      params: those of f and those of g, pytrees of arrays whose first axis is the block.
      x: x₁ and x₂.
      length: the number of blocks, L; needed only where there are no params.

    For those who are not fbp it is a `jax.lax.scan`. The backward pass takes one forward pass more.

    Inputs are rebuilt by subtraction, so they are off by the rounding of the sums, and earlier blocks are given the errors of
    later ones, which may grow. In float32 the gradients of a thousand blocks are right to 2e-6 of the largest if each adds a
    thirtieth of x (1e-6 with kept activations), but to 2e-4 if it adds an eighth (3e-6): `tests/ops/test_stacks.py` measures
    it. In bfloat16 sums lose too much: let x be float32, and f and g compute in bfloat16.

    Raises TypeError if f or g gives something of another type than its half of x; ValueError if the first axes differ.

    >>> import fbp
    >>> w = jax.random.normal(jax.random.key(0), (2, 1000, 8, 8)) / 80
    >>> half = lambda w, x: jnp.tanh(x @ w)
    >>> loss = lambda w, x: jnp.sum(reversible(half, half, (w[0], w[1]), (x, x))[0])
    >>> _, pullback = fbp.vjp(loss, w, jnp.ones((2, 8)))
    >>> sorted({leaf.shape for leaf in jax.tree.leaves(pullback)})  # w, and the last y
    [(2, 8), (1000, 8, 8)]
    """
    depth = _length("reversible", params, length)
    (x1, x2), _ = _strong(x)

    def half(name, fun, params, x, like):
        params, tree = jax.tree.flatten(params)

        def flat(*args):
            y = fun(jax.tree.unflatten(tree, args[:-1]), args[-1])
            _check_type(f"reversible: {name}", y, like)
            return [y]

        staged, consts = stage(flat, *map(_of_one, params), jax.typeof(x))
        return Half(staged, len(params)), [*consts, *params]

    f_half, of_f = half("f", f, params[0], x2, x1)
    g_half, of_g = half("g", g, params[1], x1, x2)
    y1, y2 = _reversible(*of_f, *of_g, x1, x2, halves=Halves(f_half, g_half, depth))
    return y1, y2


class Half(NamedTuple):
    fun: Staged
    n_params: int  # leaves of a block's parameters

    def split(self, values):
        """What belongs to its constants, to its parameters, and the rest."""
        return split(values, self.fun.n_consts, self.n_params)


class Halves(NamedTuple):
    f: Half
    g: Half
    length: int  # blocks

    def split(self, values):
        """What belongs to the constants and parameters of f, to those of g, and to x."""
        *of_f, values = self.f.split(values)
        *of_g, of_x = self.g.split(values)
        return of_f, of_g, of_x


def _run(args, halves):
    (f_consts, f_params), (g_consts, g_params), x = halves.split(args)

    def step(x, params):
        (x1, x2), (f_params, g_params) = x, params
        y1 = x1 + halves.f.fun(*f_consts, *f_params, x2)[0]
        return [y1, x2 + halves.g.fun(*g_consts, *g_params, y1)[0]], None

    return lax.scan(step, x, (f_params, g_params), length=halves.length)[0]


def _reversible_forward(site, *args, halves):
    ys = _run(args, halves)
    return ys, (args[:-2], ys)


def _reversible_backward(site, residuals, *y_bars, halves):
    inputs, ys = residuals
    (f_consts, f_params), (g_consts, g_params), _ = halves.split(inputs)
    f_needs, g_needs, _ = halves.split(site.needs)
    f_avals, g_avals, x_avals = halves.split(site.avals)

    def reverse(half, needs, consts, params, const_bars, y, z, y_bar, z_bar):
        """y = x + f(w, z)  =>  x, z̄, w̄; and that of what all blocks share, added to what it is so far."""
        (added,), pullback = site.vjp(half.fun, [*needs[0], *needs[1], True], *consts, *params, z)
        new_const_bars, param_bars, (more,) = half.split(pullback(y_bar))
        return y - value(added), _sum(z_bar, more), param_bars, list(map(_sum, const_bars, new_const_bars))

    def step(carry, params):
        (y1, y2), (y1_bar, y2_bar), (f_const_bars, g_const_bars) = carry
        f_params, g_params = params
        x2, x1_bar, g_bars, g_const_bars = reverse(
            halves.g, g_needs, g_consts, g_params, g_const_bars, y2, y1, y2_bar, y1_bar
        )
        x1, x2_bar, f_bars, f_const_bars = reverse(
            halves.f, f_needs, f_consts, f_params, f_const_bars, y1, x2, x1_bar, y2_bar
        )
        return ([x1, x2], [x1_bar, x2_bar], (f_const_bars, g_const_bars)), (f_bars, g_bars)

    zero = lambda aval: zeros(aval.update(weak_type=False))
    zeros_of = lambda avals, needs: [zero(aval) if needed else None for aval, needed in zip(avals, needs, strict=True)]
    y_bars = [zero(aval) if y_bar is None else y_bar for y_bar, aval in zip(y_bars, x_avals, strict=True)]
    carry = ys, y_bars, (zeros_of(f_avals[0], f_needs[0]), zeros_of(g_avals[0], g_needs[0]))
    (_, x_bars, (f_const_bars, g_const_bars)), (f_bars, g_bars) = lax.scan(
        step, carry, (f_params, g_params), length=halves.length, reverse=True
    )
    return [*f_const_bars, *f_bars, *g_const_bars, *g_bars, *x_bars]


@functools.partial(op, rule=Rule(_reversible_forward, _reversible_backward))
def _reversible(*args, halves):
    return _run(args, halves)


def _sum(a, b):
    return a if b is None else lax.add(a, b)


# ------------------------------------------------------------------------------------------------------- arguments


def _length(name: str, params: Any, length: int | None) -> int:
    leaves = jax.tree.leaves(params)
    if any(jnp.ndim(p) == 0 for p in leaves):
        raise ValueError(f"{name}: the first axis of every parameter is the block, but one of them is a scalar.")
    lengths = {len(p) for p in leaves} | ({length} if length is not None else set())
    if len(lengths) != 1:
        raise ValueError(
            f"{name}: the first axis of every parameter is the block, and all have the same length, but those here have "
            f"{sorted(lengths)}."
            if lengths
            else f"{name}: without parameters the number of blocks is not known; pass length=..."
        )
    return lengths.pop()


def _of_one(stacked: jax.Array) -> Any:
    """The type of the parameters of one block."""
    return jax.eval_shape(lambda p: p[0], jax.ShapeDtypeStruct((1, *stacked.shape[1:]), stacked.dtype))


def _strong(x: Any) -> tuple[Sequence[jax.Array], Any]:
    """Leaves whose dtype does not give way to others, and their structure."""
    leaves, tree = jax.tree.flatten(x)
    return [jnp.asarray(leaf, jnp.result_type(leaf)) for leaf in leaves], tree


def _check_type(what: str, y: Any, x: Any) -> None:
    types = [jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", tree) for tree in (x, y)]
    if types[0] != types[1]:
        raise TypeError(f"{what} must give what it takes, {types[0]}, but gives {types[1]}.")
