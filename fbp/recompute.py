"""What a backward pass keeps, and what it computes again: a minimum cut.

Every value that a rule reads on the way back has to be there. Either it was kept, at the cost of its bytes, or the
operation that gave it is run again, from values that have to be there in turn. In the graph of the program, with an edge
from what an operation reads to what it gives, the values that are kept are thus a cut between what cannot be computed again
and what is read; the best choice is the cheapest cut, and by the theorem of Ford & Fulkerson (1956) a maximum flow finds it.
(So does the partitioner of PyTorch's AOTAutograd, He & Zou 2022.)

    u = W x            kept: 4 bytes a number           read by: h, and the rule of gelu
    h = gelu(u)        run again from u                 read by: the rule of V h, for V̄ = ȳ hᵀ
    y = V h
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from fbp.chains import Chains, never
from fbp.core import elements

SMALL = 4096  # a value is small that has so much less than all together, such as the statistics of channels
MOST = 2  # large values from which one is computed again; with 3 to 5 residual nets compile longer, and small ones keep more


class Constant(NamedTuple):
    """A value that is part of the program, such as the 2.0 of `2.0 * x`: kept on the tape, not among the arrays."""

    value: Any


class Rerun(NamedTuple):
    """An operation that may be run again: `run(*values)` gives what it left in the forward pass. Values have numbers. `spreads`
    says that it only repeats what it reads, and a compiler does so in each place where the result is read."""

    run: Callable[..., Sequence[Any]]
    reads: tuple[int | Constant, ...]
    gives: tuple[int | Constant, ...]
    spreads: bool = False


class Replay:
    """A function that may be called only once, as one that may be called again: staged when it is made."""

    def __init__(self, fun: Callable, *xs: Any):
        self.staged, result = jax.make_jaxpr(fun, return_shape=True)(*map(jax.typeof, xs))
        self.tree = jax.tree.structure(result)

    def __call__(self, *xs: Any) -> Any:
        return jax.tree.unflatten(self.tree, jax.core.eval_jaxpr(self.staged.jaxpr, self.staged.consts, *xs))


def origins(reruns: Iterable[Rerun]) -> dict[int, Rerun]:
    """For each value that can be computed again, how."""
    found: dict[int, Rerun] = {}
    for rerun in reruns:
        for k in rerun.gives:
            if not isinstance(k, Constant) and k not in rerun.reads:
                found.setdefault(k, rerun)
    return found


def numbers(values: Iterable[int | Constant]) -> list[int]:
    return [k for k in values if not isinstance(k, Constant)]


def behind(wanted: Iterable[int], origin: Mapping[int, Rerun], kept: set[int]) -> set[int]:
    """The wanted values and those from which they are computed again, back to the kept."""
    found: set[int] = set()
    pending = list(wanted)
    while pending:
        k = pending.pop()
        if k not in found:
            found.add(k)
            if k not in kept and k in origin:
                pending += numbers(origin[k].reads)
    return found


def cheapest(
    wanted: Iterable[int],
    reruns: Sequence[Rerun],
    size: Callable[[int], int],
    free: Container[int] = (),
    at_hand: Iterable[int | None] = (),
) -> set[int]:
    """Which values to keep, so that all that are wanted can be had, in the fewest bytes; those that are `free` cost none. Of
    equally good choices, that which runs the least again.

    None is computed again from more than `MOST` large ones: of x_{l+1} = x_l + f(x_l), for which f's value is kept anyway, each
    x_l could be had from all of the f before it, in time that grows with the square of the depth.

    What is smaller than the one value `at_hand` that it is computed from, as a weight in half precision, is not kept. Otherwise
    such a value counts as any: where all is computed from arguments the program is short, and to run it again would take
    more time and no less memory."""
    wanted, origin, at_hand = set(wanted), origins(reruns), set(at_hand)
    reads = {k: numbers(origin[k].reads) for k in wanted if k in origin}
    from_one = {k: read[0] for k, read in reads.items() if len(read) == 1 and read[0] in at_hand}
    cost = lambda k: 0 if k in free else size(k)
    smaller = {k: r for k, r in from_one.items() if 0 < cost(k) < cost(r)}
    wanted = wanted - smaller.keys() | {*smaller.values()}
    involved = behind(wanted, origin, set())
    kept = {k for k in wanted if k not in origin}
    places = {k: i for i, k in enumerate(involved - kept)}
    if not places:
        return kept
    sizes = {k: cost(k) for k in places}
    small = sum(sizes.values()) // SMALL  # to compute these again would save little, and the larger a program, the less
    sizes = {k: n if n > small else 0 for k, n in sizes.items()}
    total = sum(sizes.values())
    unit = max(1, total >> 28)  # the library counts in 32 bits
    endless = total // unit + len(places) + 1
    source, sink = 2 * len(places), 2 * len(places) + 1
    edges: list[tuple[int, int, int]] = []
    for k, i in places.items():  # value k is an edge from 2 i to 2 i + 1
        edges.append((2 * i, 2 * i + 1, -(-sizes[k] // unit)))
        if k in wanted:
            edges.append((2 * i + 1, sink, endless))
        if k not in origin:
            edges.append((source, 2 * i, endless))
        else:
            edges += [(2 * places[r] + 1, 2 * i, endless) for r in {*numbers(origin[k].reads)} if r in places]
    tails, heads, capacities = np.array(edges, np.int32).T
    graph = csr_array((capacities, (tails, heads)), shape=(sink + 1, sink + 1))
    spare = graph - maximum_flow(graph, source, sink).flow
    spare.data[spare.data < 0] = 0
    spare.eliminate_zeros()
    from_sink = {*breadth_first_order(spare.T.tocsr(), sink, return_predecessors=False).tolist()}
    kept |= {k for k, i in places.items() if 2 * i + 1 in from_sink and 2 * i not in from_sink}
    return kept | too_far(behind(wanted, origin, kept) - kept, kept, reruns, size)


def too_far(again: set[int], kept: set[int], reruns: Sequence[Rerun], size: Callable[[int], int]) -> set[int]:
    """Those of the values that are to be computed again that would be so from more than `MOST` large ones, if those of them
    that come before are kept. Large is what has a quarter of the bytes of the largest, and of what is made of it, or more."""
    sources, found = {k: {k} for k in kept}, set[int]()
    for rerun in reruns:  # in the order of the program
        given = again.intersection(numbers(rerun.gives)) - sources.keys()
        if not given:
            continue
        read = set[int]().union(*(sources.get(r, ()) for r in numbers(rerun.reads)))
        largest = max(map(size, read | given))
        large = {r for r in read if 4 * size(r) > largest}
        is_far = len(large) > MOST
        found |= given if is_far else set()
        sources |= {k: {k} if is_far else large for k in given}
    return found


class Recall:
    """The values of a forward pass by number: those that were kept, and the others as they are asked for."""

    def __init__(self, kept: Mapping[int, Any], reruns: Sequence[Rerun], waits: bool, chains: Chains):
        self.known = dict(kept)
        self.waits = waits
        self.chains = chains
        self.origin = origins(reruns)
        self.late: set[int] = set()  # what waits for cotangents, as it was computed again
        self.clock = Clock()

    def __call__(self, k: int | Constant, bars: Sequence[Any]) -> Any:
        """Value k, computed now, when these cotangents have come, if it was not kept."""
        pending = [k]
        while pending:
            k = pending[-1]
            if isinstance(k, Constant) or k in self.known:
                pending.pop()
                continue
            rerun = self.origin[k]
            missing = [r for r in numbers(rerun.reads) if r not in self.known]
            if missing:
                pending += missing
                continue
            xs, is_late = self.read(rerun, bars)
            given = zip(rerun.gives, rerun.run(*xs), strict=True)
            new = {k: x for k, x in given if not isinstance(k, Constant) and k not in self.known}
            self.chains.again([*new.values()], xs)
            self.known |= new
            self.late |= {*new} if is_late else set()
        return self.value(k)

    def value(self, k):
        return k.value if isinstance(k, Constant) else self.known[k]

    def read(self, rerun: Rerun, bars: Sequence[Any]) -> tuple[list[Any], bool]:
        """Values to compute with again, and whether that waits for the cotangents: one value that does is enough."""
        xs = [self.value(k) for k in rerun.reads]
        is_late = bool(self.late.intersection(numbers(rerun.reads)))
        if is_late or rerun.spreads or not self.waits:
            return xs, is_late
        for i in sorted(range(len(xs)), key=lambda i: -elements(xs[i])):
            later = self.clock.after(xs[i], bars)
            if later is not xs[i]:
                self.chains.again([later], [xs[i]])
                xs[i] = later
                return xs, True
        return xs, False


class Clock:
    """Tells the compiler that something is not to be computed before some cotangents are known: else it would find what is
    computed again to be what the forward pass has computed already, and keep that."""

    def __init__(self):
        self.never: dict[int, tuple[Any, Any]] = {}  # by the id of a cotangent: itself, and what is false of it
        self.zeros: dict[Any, Any] = {}

    def after(self, x: Any, bars: Sequence[Any]) -> Any:
        """x, as far as the compiler can tell not before the cotangents are known."""
        bar = next((bar for bar in bars if _is_real(bar)), None)
        # Not for one of many cotangents, which are mapped over while x is not: what is computed of x is so for all of them.
        if bar is None or not _is_real(x) or getattr(x, "_trace", None) is not getattr(bar, "_trace", None):
            return x
        if jax.default_backend() != "cpu" or not jax.typeof(bar).sharding.mesh.empty:
            return lax.optimization_barrier((x, bar))[0]
        # XLA drops the barriers of programs for CPUs.
        if id(bar) not in self.never:
            self.never[id(bar)] = bar, never(bar)
        aval = jax.typeof(x)
        if aval not in self.zeros:
            self.zeros[aval] = lax.full_like(x, 0)
        return lax.select_n(self.never[id(bar)][1], x, self.zeros[aval])


def _is_real(x: Any) -> bool:
    aval = jax.typeof(x) if isinstance(x, jax.core.Tracer) else None
    return isinstance(aval, jax.core.ShapedArray) and jnp.issubdtype(aval.dtype, jnp.floating) and elements(aval) > 0
