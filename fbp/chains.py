"""Long sums, cut where a compiler would compute them again and again.

    x_{l+1} = x_l + f(w_l, x_l)   =>   x_bar_l = x_bar_{l+1} + f's pullback of x_bar_{l+1}

What is elementwise a compiler merges with what reads it, in several places if need be. So x_l, which is x_0 and every f before
it, may be computed wherever it is read, from l arrays: program, compile time and step time then grow with the square of
the depth. (So they do under `jax.grad`, of residual nets and of norms that are written out.) Here a value that would be
computed from more than `MOST` arrays is written down.

On CPUs: for what else there is, XLA weighs what a merger costs itself. A rulebook that computes nothing again,
`RULES.recomputing([])`, does not cut anything.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax import lax

from fbp import _compat
from fbp.core import elements

MOST = 8  # arrays; with 4 to 16 nets of 48 layers take the same time
LARGE = 1 << 14  # bytes; what is smaller may be read as often as it likes


class Merged(NamedTuple):
    """A value that may be computed where it is read: from which arrays, by their ids."""

    value: Any  # so that its id stays its own
    sources: frozenset[int]


class Chains:
    """From which arrays the elementwise values of a program are computed, if the compiler writes down none between."""

    def __init__(self, is_cut: bool):
        self.merged: dict[int, Merged] = {}
        self.is_cut = is_cut and jax.default_backend() == "cpu"

    def elementwise(self, ys: Sequence[Any], xs: Iterable[Any], most: int = MOST) -> Sequence[Any]:
        """ys, which are elementwise functions of xs; written down, if they come from more than `most` arrays, and from more than
        each x does."""
        if not self.is_cut or not any(map(is_large, ys)):
            return ys
        read = {id(x): self.sources(x) for x in xs if is_large(x)}
        found = frozenset[int]().union(*read.values())
        new = {id(y) for y in ys if is_large(y)} - read.keys()
        if len(found) > most and found not in read.values():
            return [written_down(y) if id(y) in new else y for y in ys]
        self.merged |= {id(y): Merged(y, found) for y in ys if id(y) in new}
        return ys

    def again(self, ys: Sequence[Any], xs: Iterable[Any]) -> None:
        """Says that ys have been computed again, from xs: from no more than a few (see `fbp.recompute.too_far`)."""
        self.elementwise(ys, xs, most=sys.maxsize)

    def sources(self, x: Any) -> frozenset[int]:
        return self.merged[id(x)].sources if id(x) in self.merged else frozenset([id(x)])


def is_large(x: Any) -> bool:
    """Whether it matters how often x is read: a large array of a staged program, of real numbers, in one piece."""
    return isinstance(x, jax.core.Tracer) and _is_large(x.aval)


@functools.lru_cache(4096)
def _is_large(aval: Any) -> bool:
    if not isinstance(aval, jax.core.ShapedArray) or not jnp.issubdtype(aval.dtype, jnp.floating):
        return False
    return elements(aval) * aval.dtype.itemsize > LARGE and aval.sharding.mesh.empty


def never(x: jax.Array) -> jax.Array:
    """False, which the compiler does not know before x is: it does not see that no number is less than itself."""
    first = lax.squeeze(lax.slice(x, (0,) * x.ndim, (1,) * x.ndim), range(x.ndim))
    return first < first


@jax.jit  # traced once for each type
def written_down(x: jax.Array) -> jax.Array:
    """x, as an array of its own, whatever reads it."""
    return _apart(x)


@jax.custom_jvp
def _apart(x):
    if _compat.KEEPS_BARRIERS:
        return lax.optimization_barrier(x)
    # XLA drops the barriers of programs for CPUs. It does not know that this loop never runs.
    return lax.while_loop(never, lax.neg, x)


@_apart.defjvp
def _(primals, tangents):
    return _apart(*primals), tangents[0]
