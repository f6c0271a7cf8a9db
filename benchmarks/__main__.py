"""Step time, memory and compile time of fbp.grad beside jax.grad, measured in turn, in one process.

Five parts: "drop-in", unmodified programs, where only jax.grad becomes fbp.grad; "fbp.nn", networks and operations written
with fbp's layers, beside their Flax twins; "operations", single unmodified ones; "programs", smaller unmodified programs of
many fields; and "accelerator", programs of the first two parts at sizes that fill a GPU. Ratios are to the first line of each
case; below 1 is better. The multiple of the forward pass has a floor of about three. "of peak" is the speed of three forward
passes' products in that time, as a share of one large product's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import jax
import tyro
from rich.progress import Progress

from benchmarks import accelerator, drop_in, layers, operations, programs
from benchmarks.measure import Program, Result, geometric_mean, measure, peak
from fbp.report import figures

Cases = dict[str, Callable[[], Program]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Which cases, and how long to look at each."""

    cases: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of parts (drop-in, fbp.nn, operations, programs, accelerator) or of cases. If none is given, the first two parts on
    a CPU, the last elsewhere."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """The dtype of parameters and data of the part "accelerator"."""
    quick: bool = False
    """A second for each variant and two compilations, instead of three seconds and four (of which the median counts)."""
    json: pathlib.Path | None = None
    """Write every number to this file."""
    picture: pathlib.Path | None = None
    """Draw the ratios, as bars, to this file."""
    growth: pathlib.Path | None = None
    """Measure, instead of cases, how time and memory grow with depth, length and vocabulary, and draw that to this file."""


def main(options: Options) -> int:
    if options.growth:
        return draw_growth(options.growth, options.json)
    parts: dict[str, Cases] = {
        "drop-in": drop_in.CASES,
        "fbp.nn": layers.CASES,
        "operations": operations.CASES,
        "programs": programs.CASES,
        "accelerator": accelerator.cases(options.precision),
    }
    wanted = {*options.cases} or ({"drop-in", "fbp.nn"} if jax.default_backend() == "cpu" else {"accelerator"})
    chosen = {
        (part, name): make for part, cases in parts.items() for name, make in cases.items() if {part, name} & wanted
    }
    if unknown := wanted - {name for key in chosen for name in key}:
        known = "; ".join(f"{part}: {', '.join(cases)}" for part, cases in parts.items())
        print(f"There is no case {', '.join(sorted(unknown))}. The cases are, by part, {known}.", file=sys.stderr)
        return 2
    results: dict[str, dict[str, Result]] = {}
    failed: list[str] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for (part, name), make in chosen.items():
            progress.update(task, description=name)
            if part not in results:
                results[part] = {}
                progress.console.print(line(part, "gradient", COLUMNS), highlight=False, soft_wrap=True)
            seconds, compiles = (1.0, 2) if options.quick else (3.0, 4)
            try:
                results[part][name] = measure(make(), seconds, compiles)
            except jax.errors.JaxRuntimeError as error:  # out of memory, mostly; the others are measured all the same
                progress.console.print(f"{name}: {str(error).splitlines()[0]}", markup=False, soft_wrap=True)
                failed.append(name)
                continue
            precision = options.precision if part == "accelerator" else "float32"
            progress.console.print(rows(name, results[part][name], precision), highlight=False, soft_wrap=True)
            progress.advance(task)
            if options.json:
                write(options.json, {part: record(of_part) for part, of_part in results.items()})
    results = {part: of_part for part, of_part in results.items() if of_part}
    for part, of_part in results.items():
        print(summary(part, of_part))
    if options.picture:
        names = {(part, name): name if len(results) == 1 else f"{part}: {name}" for part, name in chosen}
        ratios = {
            quantity: {
                names[p, n]: result.ratio("fbp.grad", field) for p in results for n, result in results[p].items()
            }
            for quantity, field in QUANTITIES.items()
        }
        figures.ratio_bars(options.picture, ratios, "fbp.grad, relative to jax.grad (below 1 is better)")
        print(options.picture)
    return 1 if failed else 0


GROWING = {"step time (s)": "step", "memory (MiB)": "memory", "compile time (s)": "compile"}


def draw_growth(picture: pathlib.Path, numbers: pathlib.Path | None) -> int:
    """The programs of `layers.GROWTH`, each at its sizes."""
    results: dict[str, dict[int, Result]] = {}
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=sum(len(sizes) for sizes, _ in layers.GROWTH.values()))
        for what, (sizes, make) in layers.GROWTH.items():
            results[what] = {}
            progress.console.print(f"{what}\n{line('', 'gradient', COLUMNS)}", highlight=False, soft_wrap=True)
            for size in sizes:
                progress.update(task, description=f"{what}: {size}")
                results[what][size] = measure(make(size), seconds=0.5, compiles=1, rounds=3)
                progress.console.print(rows(str(size), results[what][size]), highlight=False, soft_wrap=True)
                progress.advance(task)

    def curves(by_size: dict[int, Result], field: str) -> dict[str, dict[int, float]]:
        scale = 2**20 if field == "memory" else 1
        variants = next(iter(by_size.values())).variants
        return {v: {n: getattr(r.variants[v], field) / scale for n, r in by_size.items()} for v in variants}

    panels = {
        what: {quantity: curves(by_size, field) for quantity, field in GROWING.items()}
        for what, by_size in results.items()
    }
    figures.growth_curves(picture, panels, "one gradient, as the program grows")
    print(picture)
    if numbers:
        write(numbers, {what: record(by_size) for what, by_size in results.items()})
    return 0


QUANTITIES = {"step time": "step", "memory": "memory", "compile time": "compile", "trace time": "trace"}


COLUMNS = {
    "step": 9, "quartiles": 12, "memory": 11, "trace": 8, "compile": 9, "× forward": 11, "of peak": 8, "difference": 11
}  # fmt: skip


def line(case: str, variant: str, cells: Iterable[str]) -> str:
    return f"{case:<21}{variant:<20}" + "".join(
        f"{c:>{width}}" for c, width in zip(cells, COLUMNS.values(), strict=True)
    )


def rows(name: str, result: Result, precision: str = "float32") -> str:
    """A line for each variant of a case: the first in its own units, the others as ratios to it."""
    lines = []
    for variant, measured in result.variants.items():
        if not lines:
            cells = [f"{measured.step * 1e3:.1f} ms", "", f"{(measured.memory or 0) / 2**20:.1f} MiB"]
            cells += [f"{measured.trace or 0:.2f} s", f"{measured.compile or 0:.2f} s"]
        else:
            low, high = result.spread(variant)
            cells = [f"{result.ratio(variant):.2f}", f"{low:.2f}-{high:.2f}"]
            cells += [shown(result.ratio(variant, quantity)) for quantity in ("memory", "trace", "compile")]
        cells += [f"{measured.step / result.forward:.1f}", f"{result.speed(variant) / peak(precision):.0%}"]
        cells += [f"{measured.difference:.0e}" if lines and measured.difference is not None else ""]
        lines.append(line("" if lines else name, variant, cells).rstrip())
    return "\n".join(lines)


def shown(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.2f}" if ratio >= 0.01 else f"{ratio:.1g}"


def summary(part: str, results: dict[str, Result]) -> str:
    """A line for each variant: geometric means over the cases that have it."""
    lines = []
    reference, *others = dict.fromkeys(variant for result in results.values() for variant in result.variants)
    for variant in others:
        having = [result for result in results.values() if variant in result.variants]
        ratios = {q: [result.ratio(variant, field) for result in having] for q, field in QUANTITIES.items()}
        known = {q: [r for r in of_q if r > 0] for q, of_q in ratios.items()}
        said = ", ".join(f"{q} {geometric_mean(of_q):.2f}" for q, of_q in known.items() if of_q)
        lines.append(f"{part}: {variant} / {reference}, geometric mean of {len(having)} cases: {said}")
    return "\n".join([*lines, f"jax {jax.__version__}, {_device()}"])


def _device() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return "cpu, huge pages" if "glibc.malloc.hugetlb" in os.environ.get("GLIBC_TUNABLES", "") else "cpu"


def record(results: dict[Any, Result]) -> dict:
    return {
        name: {"forward": result.forward, "flops": result.flops, **{v: m._asdict() for v, m in result.variants.items()}}
        for name, result in results.items()
    }


def write(path: pathlib.Path, results: dict[str, dict]) -> None:
    path.write_text(json.dumps({"jax": jax.__version__, "device": _device(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, prog="scripts/bench", description=__doc__)))
