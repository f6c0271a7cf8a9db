"""How one program is measured: variants of its gradient side by side, in turn, in one process.

Machines are shared and noisy, so a time is only ever compared with another taken in the same round, and what is reported
is the ratio of medians, with the quartiles of the ratios round by round.

What share of the machine's speed a gradient gets is told by what three forward passes' products of matrices and convolutions
take (the model's own work, without what a method computes again; Chowdhery et al. 2022, appendix B), over the step time, and
over the speed of one large product of matrices, measured in the same process.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params
from jax.extend.core import primitives as p
from jax.typing import DTypeLike

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


LITTLE = 1 << 16  # bytes


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
    """A program's variants, the time of its forward pass, and the floating-point operations of the products in that. The
    first variant is what the others are compared with."""

    variants: dict[str, Measured]
    forward: float
    flops: int

    def ratio(self, name: str, quantity: str = "step", to: str | None = None) -> float:
        """nan where one of the two is not known, or the reference needs no memory to speak of."""
        reference = getattr(self.variants[to or next(iter(self.variants))], quantity)
        measured = getattr(self.variants[name], quantity)
        least = LITTLE if quantity == "memory" else 0
        return measured / reference if measured is not None and (reference or 0) > least else float("nan")

    def spread(self, name: str) -> tuple[float, float]:
        """The quartiles of the ratio of step times, round by round."""
        reference = next(iter(self.variants.values())).steps
        low, _, high = statistics.quantiles(
            [a / b for a, b in zip(self.variants[name].steps, reference, strict=True)], n=4, method="inclusive"
        )
        return low, high

    def speed(self, name: str) -> float:
        """Floating-point operations in a second, of the products of three forward passes."""
        return 3 * self.flops / self.variants[name].step


def measure(program: Program, seconds: float = 3.0, compiles: int = 2, rounds: int = 5) -> Result:
    """Traces and compiles each variant `compiles` times, in one order and in the other (what a process compiles first takes
    less), then runs all in turn for about `seconds` each, `rounds` times at least."""
    reference = next(iter(program.variants.values()))
    variants = {"": reference._replace(step=program.forward), **program.variants}
    traces: dict[str, list[float]] = {name: [] for name in variants}
    compilations: dict[str, list[float]] = {name: [] for name in variants}
    compiled: dict[str, Any] = {name: variant.step for name, variant in variants.items() if not variant.jitted}
    for i in range(compiles):
        for name, variant in [*variants.items()][:: -1 if i % 2 else 1]:
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
    flops = product_flops(jax.make_jaxpr(program.forward)(reference.params, *reference.batch))
    return Result(measured, statistics.median(steps[""]), flops)


def product_flops(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    """Floating-point operations of the products and convolutions of a program: two for each multiplication that is added."""

    def shape(atom: Any) -> tuple[int, ...]:
        return getattr(atom.aval, "shape", ())

    total = 0
    for eqn in (jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr).eqns:
        if eqn.primitive is p.dot_general_p:
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * math.prod(shape(eqn.outvars[0])) * math.prod(shape(eqn.invars[0])[i] for i in contracted)
        elif eqn.primitive is p.conv_general_dilated_p:
            kernel = shape(eqn.invars[1])
            features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            between = math.prod(eqn.params["lhs_dilation"])  # of so many taps one meets a value, the others a zero
            total += 2 * math.prod(shape(eqn.outvars[0])) * math.prod(kernel) // features // between
        else:
            times = eqn.params["length"] if eqn.primitive is p.scan_p else 1
            total += times * sum(map(product_flops, jaxprs_in_params(eqn.params)))
    return total


@functools.cache
def peak(dtype: DTypeLike) -> float:
    """Floating-point operations in a second of one large product of square matrices."""
    n = 8192 if jax.default_backend() != "cpu" else 2048
    x = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(jnp.matmul)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(times[2:])


def geometric_mean(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def _timed(run: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start
