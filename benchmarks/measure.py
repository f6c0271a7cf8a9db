"""How one program is measured: variants of its gradient side by side, in turn, in one process.

Machines are shared and noisy, so a time is only ever compared with another taken in the same round, and what is reported
is the ratio of medians, with the quartiles of the ratios round by round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fbp.check.compare import relative_error

Step = Callable[..., tuple[Any, Any]]


class Program(NamedTuple):
    """`loss(params, *batch)` is a scalar. `checkpointed` is the same loss as a user of `jax.checkpoint` writes it, if that
    is worth comparing."""

    loss: Callable[..., Any]
    params: Any
    batch: tuple
    checkpointed: Callable[..., Any] | None = None


class Measured(NamedTuple):
    """One variant of one program. Times are medians, in seconds."""

    step: float
    steps: tuple[float, ...]
    trace: float
    compile: float
    memory: int  # bytes of temporary memory, by XLA's analysis
    instructions: int  # of the optimized program
    difference: float  # largest difference of a gradient from the reference's, relative to its largest element


class Result(NamedTuple):
    """A program's variants, and its forward pass. The first variant is what the others are compared with."""

    variants: dict[str, Measured]
    forward: float

    def ratio(self, name: str, quantity: str = "step") -> float:
        reference = getattr(next(iter(self.variants.values())), quantity)
        return getattr(self.variants[name], quantity) / reference if reference else float("nan")

    def spread(self, name: str) -> tuple[float, float]:
        """The quartiles of the ratio of step times, round by round."""
        reference = next(iter(self.variants.values())).steps
        low, _, high = statistics.quantiles(
            [a / b for a, b in zip(self.variants[name].steps, reference, strict=True)], n=4, method="inclusive"
        )
        return low, high


def measure(variants: Mapping[str, Step], program: Program, seconds: float = 3.0, compiles: int = 2) -> Result:
    """Traces and compiles each variant `compiles` times, then runs all in turn for about `seconds` each, five times at least."""
    args = (program.params, *program.batch)
    functions = {"": lambda *args: program.loss(*args), **variants}
    traces: dict[str, list[float]] = {name: [] for name in functions}
    compilations: dict[str, list[float]] = {name: [] for name in functions}
    compiled: dict[str, Any] = {}
    for _ in range(compiles):
        for name, function in functions.items():
            jax.clear_caches()
            start = time.perf_counter()
            traced = jax.jit(lambda *args, function=function: function(*args)).trace(*args)
            traces[name].append(time.perf_counter() - start)
            start = time.perf_counter()
            compiled[name] = traced.lower().compile()
            compilations[name].append(time.perf_counter() - start)

    steps: dict[str, list[float]] = {name: [] for name in functions}
    gradients = {name: jax.tree.leaves(jax.device_get(compiled[name](*args)))[1:] for name in variants}
    estimate = max(_timed(compiled[name], args) for name in functions)
    for i in range(max(5, int(seconds / max(estimate, 1e-6)) if estimate > 1e-2 else 100)):
        names = list(functions)
        for name in names[i % len(names) :] + names[: i % len(names)]:  # none is always the first of a round
            steps[name].append(_timed(compiled[name], args))

    reference = gradients[next(iter(variants))]
    measured = {
        name: Measured(
            step=statistics.median(steps[name]),
            steps=tuple(steps[name]),
            trace=statistics.median(traces[name]),
            compile=statistics.median(compilations[name]),
            memory=compiled[name].memory_analysis().temp_size_in_bytes,
            instructions=compiled[name].as_text().count("\n"),
            difference=max(map(relative_error, gradients[name], reference, [reference] * len(reference))),
        )
        for name in variants
    }
    return Result(measured, statistics.median(steps[""]))


def geometric_mean(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def _timed(function: Callable, args: tuple) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start
