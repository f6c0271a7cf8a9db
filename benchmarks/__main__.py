"""Step time, memory and compile time of fbp.grad beside jax.grad, on unmodified programs.

Each case is one program under jax.grad, under jax.grad with jax.checkpoint where that is worth comparing, and under
fbp.grad: measured in turn, in one process. Ratios are to jax.grad; below 1 is better. The multiple of the forward pass
has a floor of about three.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable
from typing import Annotated

import jax
import tyro
from rich.progress import Progress

import fbp
from benchmarks import drop_in
from benchmarks.measure import Program, Result, Step, geometric_mean, measure
from fbp.report import figures


@dataclasses.dataclass(frozen=True)
class Options:
    """Which cases, and how long to look at each."""

    cases: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of cases; all, if none is given."""
    quick: bool = False
    """A second for each variant and one compilation, instead of three seconds and the median of three compilations."""
    json: pathlib.Path | None = None
    """Write every number to this file."""
    picture: pathlib.Path | None = None
    """Draw the ratios, as bars, to this file."""


def variants(program: Program) -> dict[str, Step]:
    """The gradients of a program that are measured side by side; the first is the reference."""
    steps: dict[str, Step] = {"jax.grad": jax.value_and_grad(program.loss)}
    if program.checkpointed:
        steps["jax.checkpoint"] = jax.value_and_grad(program.checkpointed)
    return steps | {"fbp.grad": fbp.value_and_grad(program.loss)}


def main(options: Options) -> int:
    names = options.cases or tuple(drop_in.CASES)
    if unknown := set(names) - set(drop_in.CASES):
        print(
            f"There is no case {', '.join(sorted(unknown))}. The cases are {', '.join(drop_in.CASES)}.", file=sys.stderr
        )
        return 2
    results: dict[str, Result] = {}
    print(line("case", "gradient", COLUMNS))
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name)
            program = drop_in.CASES[name]()
            seconds, compiles = (1.0, 1) if options.quick else (3.0, 3)
            results[name] = measure(variants(program), program, seconds, compiles)
            progress.console.print(rows(name, results[name]), highlight=False, soft_wrap=True)
            progress.advance(task)
    print(summary(results))
    if options.json:
        options.json.write_text(json.dumps(record(results), indent=1) + "\n")
    if options.picture:
        ratios = {
            quantity: {name: result.ratio("fbp.grad", field) for name, result in results.items()}
            for quantity, field in QUANTITIES.items()
        }
        figures.ratio_bars(options.picture, ratios, "fbp.grad, relative to jax.grad (below 1 is better)")
        print(options.picture)
    return 0


QUANTITIES = {"step time": "step", "memory": "memory", "compile time": "compile", "trace time": "trace"}


COLUMNS = {"step": 9, "quartiles": 13, "memory": 11, "trace": 8, "compile": 9, "× forward": 11, "difference": 12}


def line(case: str, variant: str, cells: Iterable[str]) -> str:
    return f"{case:<21}{variant:<16}" + "".join(
        f"{c:>{width}}" for c, width in zip(cells, COLUMNS.values(), strict=True)
    )


def rows(name: str, result: Result) -> str:
    """A line for each variant of a case: the first in its own units, the others as ratios to it."""
    lines = []
    for variant, measured in result.variants.items():
        if not lines:
            cells = [f"{measured.step * 1e3:.1f} ms", "", f"{measured.memory / 2**20:.1f} MiB"]
            cells += [f"{measured.trace:.2f} s", f"{measured.compile:.2f} s"]
        else:
            low, high = result.spread(variant)
            cells = [f"{result.ratio(variant):.2f}", f"{low:.2f}-{high:.2f}"]
            cells += [f"{result.ratio(variant, quantity):.2f}" for quantity in ("memory", "trace", "compile")]
        cells += [f"{measured.step / result.forward:.1f}", f"{measured.difference:.0e}" if lines else ""]
        lines.append(line("" if lines else name, variant, cells).rstrip())
    return "\n".join(lines)


def summary(results: dict[str, Result]) -> str:
    means = {
        quantity: geometric_mean([result.ratio("fbp.grad", field) for result in results.values()])
        for quantity, field in QUANTITIES.items()
    }
    device = jax.devices()[0]
    kind = device.platform if device.platform == "cpu" else device.device_kind
    said = ", ".join(f"{quantity} {mean:.2f}" for quantity, mean in means.items())
    return f"fbp.grad / jax.grad, geometric mean of {len(results)} cases: {said}; jax {jax.__version__}, {kind}"


def record(results: dict[str, Result]) -> dict:
    return {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cases": {
            name: {"forward": result.forward, **{v: m._asdict() for v, m in result.variants.items()}}
            for name, result in results.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, prog="scripts/bench", description=__doc__)))
