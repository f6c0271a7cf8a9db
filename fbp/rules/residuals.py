"""Residuals on their way out of an inner function.

What an inner function would save is often what goes in or comes out of it anyway. Such a residual is left behind on the
inside and put back on the outside, so that a `jit` returns no array twice and a `scan` stacks none that does not change.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from fbp.core import value


@jax.tree_util.register_pytree_node_class
class Carved:
    """A pytree without the leaves that are among the known values: `sources[k]` is the place of leaf k there, or None."""

    def __init__(self, leaves: Sequence[Any], tree: Any, sources: tuple[int | None, ...]):
        self.leaves, self.tree, self.sources = leaves, tree, sources

    def tree_flatten(self):
        return self.leaves, (self.tree, self.sources)

    @classmethod
    def tree_unflatten(cls, aux, leaves):
        return cls(leaves, *aux)


def carve(tree: Any, known: Sequence[Any]) -> Carved:
    """Takes out of `tree` the leaves that are (the same object as) one of the known values."""
    place = {id(x): i for i, x in reversed(list(enumerate(known)))}
    leaves, structure = jax.tree.flatten(tree)
    sources = tuple(place.get(id(leaf)) for leaf in leaves)
    return Carved([leaf for leaf, i in zip(leaves, sources, strict=True) if i is None], structure, sources)


def refill(carved: Carved, known: Sequence[Any] | dict[int, Any]) -> Any:
    """Puts the known values back: refill(carve(tree, known), known) == tree."""
    own = iter(carved.leaves)
    return jax.tree.unflatten(carved.tree, [next(own) if i is None else known[i] for i in carved.sources])


def jitted(forward: Callable, **options: Any) -> Callable:
    """`forward(*xs) -> ys, residuals`, jitted. Residuals that are among the xs or ys stay outside: what a jit returns is a
    copy, and a mutable reference it cannot return."""

    @functools.partial(jax.jit, **options)
    @functools.wraps(forward)
    def inside(*xs):
        ys, residuals = forward(*xs)
        return ys, carve(residuals, [*xs, *map(value, ys)])

    def outside(*xs):
        ys, carved = inside(*xs)
        return ys, refill(carved, [*xs, *map(value, ys)])

    return outside
