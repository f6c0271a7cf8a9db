"""How one program is measured: variants of its gradient side by side, in turn, in one process.

Machines are shared and noisy, so a time is only ever compared with another taken in the same round, and what is reported
is the ratio of medians, with the quartiles of the ratios round by round.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fbp.check.compare import relative_error

Step = Callable[..., tuple[Any, Any]]


class Variant(NamedTuple):
    """One way to the loss and the gradient of a program: `step(params, *batch)`.

    as_reference: puts its gradient in the form of the first variant's; None if the two are not to be compared.
    jitted: whether JAX compiles it. What is not is run as it is: memory and compilation are not known.
    """

    step: Step
    params: Any
    batch: tuple
    as_reference: Callable[[Any], Any] | None = lambda gradient: gradient
    jitted: bool = True


class Program(NamedTuple):
    """The same gradient in several ways, by name. The first is what the others are compared with, and `forward` is its loss
    alone."""

    forward: Callable[..., Any]
    variants: dict[str, Variant]


class Measured(NamedTuple):
    """One variant of one program. Times are medians, in seconds. None: not known."""

    step: float
    steps: tuple[float, ...]
    trace: float | None
    compile: float | None
    memory: int | None  # bytes of temporary memory, by XLA's analysis
    instructions: int | None  # of the optimized program
    difference: float | None  # largest difference of a gradient from the reference's, relative to its largest element


class Result(NamedTuple):
    """A program's variants, and its forward pass. The first variant is what the others are compared with."""

    variants: dict[str, Measured]
    forward: float

    def ratio(self, name: str, quantity: str = "step", to: str | None = None) -> float:
        reference = getattr(self.variants[to or next(iter(self.variants))], quantity)
        measured = getattr(self.variants[name], quantity)
        return measured / reference if reference and measured is not None else float("nan")

    def spread(self, name: str) -> tuple[float, float]:
        """The quartiles of the ratio of step times, round by round."""
        reference = next(iter(self.variants.values())).steps
        low, _, high = statistics.quantiles(
            [a / b for a, b in zip(self.variants[name].steps, reference, strict=True)], n=4, method="inclusive"
        )
        return low, high


def measure(program: Program, seconds: float = 3.0, compiles: int = 2, rounds: int = 5) -> Result:
    """Traces and compiles each variant `compiles` times, then runs all in turn for about `seconds` each, `rounds` times at
    least."""
    reference = next(iter(program.variants.values()))
    variants = {"": reference._replace(step=program.forward), **program.variants}
    traces: dict[str, list[float]] = {name: [] for name in variants}
    compilations: dict[str, list[float]] = {name: [] for name in variants}
    compiled: dict[str, Any] = {name: variant.step for name, variant in variants.items() if not variant.jitted}
    for _ in range(compiles):
        for name, variant in variants.items():
            if not variant.jitted:
                continue
            jax.clear_caches()
            start = time.perf_counter()
            traced = jax.jit(lambda *args, step=variant.step: step(*args)).trace(variant.params, *variant.batch)
            traces[name].append(time.perf_counter() - start)
            start = time.perf_counter()
            compiled[name] = traced.lower().compile()
            compilations[name].append(time.perf_counter() - start)

    run = {name: functools.partial(compiled[name], v.params, *v.batch) for name, v in variants.items()}
    gradients = {
        name: [np.asarray(leaf) for leaf in jax.tree.leaves(variant.as_reference(run[name]()[1]))]
        for name, variant in program.variants.items()
        if variant.as_reference
    }
    steps: dict[str, list[float]] = {name: [] for name in variants}
    estimate = max(_timed(run[name]) for name in variants)
    for i in range(max(rounds, int(seconds / max(estimate, 1e-6)) if estimate > 1e-2 else 100)):
        names = list(variants)
        for name in names[i % len(names) :] + names[: i % len(names)]:  # none is always the first of a round
            steps[name].append(_timed(run[name]))

    def difference(name):
        expected = next(iter(gradients.values()))
        return max(relative_error(a, b, expected) for a, b in zip(gradients[name], expected, strict=True))

    measured = {
        name: Measured(
            step=statistics.median(steps[name]),
            steps=tuple(steps[name]),
            trace=statistics.median(traces[name]) if variant.jitted else None,
            compile=statistics.median(compilations[name]) if variant.jitted else None,
            memory=compiled[name].memory_analysis().temp_size_in_bytes if variant.jitted else None,
            instructions=compiled[name].as_text().count("\n") if variant.jitted else None,
            difference=difference(name) if name in gradients else None,
        )
        for name, variant in program.variants.items()
    }
    return Result(measured, statistics.median(steps[""]))


def geometric_mean(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def _timed(run: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start
