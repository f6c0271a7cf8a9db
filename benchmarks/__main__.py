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
from typing import Annotated

import jax
import rich
import tyro
from rich.progress import Progress
from rich.table import Table

import fbp
from benchmarks import drop_in
from benchmarks.measure import Measured, Program, Result, Step, geometric_mean, measure
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
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name)
            program = drop_in.CASES[name]()
            seconds, compiles = (1.0, 1) if options.quick else (3.0, 3)
            results[name] = measure(variants(program), program, seconds, compiles)
            progress.advance(task)
    rich.print(table(results))
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


def table(results: dict[str, Result]) -> Table:
    """A row for each variant of each case, as ratios to the first."""
    out = Table(
        title="ratios to jax.grad; step times with the quartiles of their ratio round by round", title_justify="left"
    )
    for heading in "case", "gradient":
        out.add_column(heading)
    for heading in "step", "quartiles", "memory", "trace", "compile", "program", "× forward", "difference":
        out.add_column(heading, justify="right")
    for name, result in results.items():
        for i, (variant, measured) in enumerate(result.variants.items()):
            out.add_row(
                name if i == 0 else "", variant, *(absolute(measured) if i == 0 else relative(result, variant)),
                f"{measured.step / result.forward:.1f}", f"{measured.difference:.0e}" if i else "",
                end_section=i == len(result.variants) - 1,
            )  # fmt: skip
    return out


def absolute(measured: Measured) -> list[str]:
    return [
        f"{measured.step * 1e3:.1f} ms", "", f"{measured.memory / 2**20:.1f} MiB", f"{measured.trace:.2f} s",
        f"{measured.compile:.2f} s", f"{measured.instructions}",
    ]  # fmt: skip


def relative(result: Result, variant: str) -> list[str]:
    low, high = result.spread(variant)
    rest = (f"{result.ratio(variant, q):.2f}" for q in ("memory", "trace", "compile", "instructions"))
    return [f"{result.ratio(variant):.2f}", f"{low:.2f}-{high:.2f}", *rest]


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
