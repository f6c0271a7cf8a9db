"""What the comparison of deep networks shows: the phase diagrams, the gradient flow, and who is faster."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from experiments import deep_networks as deep
from experiments.deep_networks import Kind
from experiments.depth_survey import Found, growth
from experiments.harness import Run, console
from fbp import report

if TYPE_CHECKING:
    from experiments.depth_stability import DepthStability

Curves = Mapping[str, Mapping[int, float]]  # test accuracy by step, by network


def speedups(claim: str, curves: Curves) -> dict[str, float | None]:
    """How many times fewer steps the last network takes to the best accuracy of each other: None if it never comes to it."""
    *others, (_, ours) = curves.items()
    metrics: dict[str, float | None] = {f"{claim}_test_accuracy": max(ours.values())}
    for name, curve in others:
        best = max(curve.values())
        steps, baseline = (next((step for step, y in c.items() if y >= best), None) for c in (ours, curve))
        name = name.replace(" ", "_").replace("-", "_")
        metrics[f"baseline_{name}_test_accuracy"] = best
        metrics[f"{claim}_speedup_over_{name}"] = baseline / steps if steps and baseline else None
    return metrics


def draw_kinds(config: DepthStability, run: Run, found: Found, before: Sequence[Kind], after: Sequence[Kind]) -> None:
    """The phase diagram of each depth; the gradient flow of some kinds, before and after they were mended, and its table."""
    down = list(itertools.product(config.activations, deep.INITIALIZATIONS))
    across = list(dict.fromkeys(kind[2:] for kind in deep.kinds(config.activations, config.normalizations)))
    labels = [" ".join(x) for x in down], [" ".join(name for name in x if name != "none") or "none" for x in across]
    for depth in config.depths:
        table = lambda value, depth=depth: [[value(found[depth, *x, *y]) for y in across] for x in down]
        panels = {"gradient at first: log10(first layer / last)": table(lambda row: growth(row["norms"]))}
        if config.steps and depth <= config.train_depth:
            title = f"test accuracy after {config.steps} steps, %"
            panels[title] = table(lambda row: 100 * row["test_accuracy"])
        report.phase_diagram(run.path(f"phase_diagram_{depth}.png"), panels, *labels, f"networks of {depth:,} layers")
    shown = min(config.flow_depths, key=lambda depth: abs(depth - 100))
    lines = lambda kinds: {
        str(k): dict(zip(found[shown, *k]["layers"], found[shown, *k]["norms"], strict=True)) for k in kinds
    }
    flows = {"before": lines(before), "after": lines(after)}
    report.curves(run.path("gradient_flow.png"), flows, xlabel="layer", ylabel="‖gradient‖ of its output", log=True)
    printed = Table("log10 of ‖gradient‖, first layer / last", *(f"{d:,} layers" for d in config.flow_depths))
    for kind in (*before, *after):
        printed.add_row(str(kind), *(f"{growth(found[d, *kind]['norms']):.1f}" for d in config.flow_depths))
    console.print(printed)
