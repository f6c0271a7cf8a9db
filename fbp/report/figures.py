"""Figures, written as PNG files. Colours are those of Okabe & Ito (2008), which colour-blind readers can tell apart."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image
from scipy import ndimage

BLUE, ORANGE, GREEN, GREY, PURPLE, YELLOW = "#0072B2", "#D55E00", "#009E73", "#777777", "#CC79A7", "#E69F00"
Path = str | pathlib.Path
_HEAT = colors.LinearSegmentedColormap.from_list("heat", ("white", ORANGE))
_SIGNED = colors.LinearSegmentedColormap.from_list("signed", (BLUE, "white", ORANGE))


def learning_curve(
    path: Path, train: Mapping[int, float], test: Mapping[str, Mapping[int, float]], title: str = "learning curve"
) -> None:
    """The training loss by step, above the test metrics by step."""
    figure = _figure(7, 5.5)
    above, below = figure.subplots(2, sharex=True)
    above.plot(list(train), list(train.values()), color=BLUE, linewidth=1.2)
    above.set(ylabel="training loss", yscale="log", title=title)
    for (name, scores), color in zip(test.items(), itertools.cycle((ORANGE, GREEN, BLUE, GREY, PURPLE, YELLOW))):
        below.plot(
            list(scores), list(scores.values()), marker="o", markersize=3, color=color, label=name.replace("_", " ")
        )
    below.set(xlabel="step", ylabel="test")
    if test:
        below.legend(frameon=False)
    for axes in above, below:
        axes.grid(alpha=0.3)
    _save(figure, path)


def gradient_flow(
    path: Path, norms: Mapping[int, Mapping[str, float]], names: Sequence[str], title: str = "gradient norm by layer"
) -> None:
    """Norm of each parameter's gradient over training: a row for each of `names` (see `parameter_names`), a column for
    each step."""
    steps = list(norms)
    image = np.array([[norms[step][name] for step in steps] for name in names])
    figure = _figure(8, 1.6 + 0.24 * len(names))
    axes = figure.subplots()
    positive = image[(image > 0) & np.isfinite(image)]
    norm = colors.LogNorm(positive.min(), positive.max()) if positive.size else None
    drawn = axes.imshow(
        np.where(image > 0, image, np.nan), aspect="auto", norm=norm, cmap="cividis", interpolation="nearest"
    )
    ticks = np.unique(np.linspace(0, len(steps) - 1, 7).astype(int))
    axes.set_xticks(ticks, [str(steps[i]) for i in ticks])
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(xlabel="step", title=title)
    figure.colorbar(drawn, label="‖gradient‖", fraction=0.03, pad=0.02)
    _save(figure, path)


def parameter_names(params: Any, prefix: str = "") -> list[str]:
    """The paths of the leaves of nested dictionaries in the order they were made in: from input to output, as `init`
    gives them. (JAX sorts keys; what has gone through a transformation is in alphabetical order.)"""
    if not isinstance(params, Mapping):
        return [prefix]
    return [
        name for key, value in params.items() for name in parameter_names(value, f"{prefix}/{key}" if prefix else key)
    ]


def image_page(
    path: Path,
    images: np.ndarray,
    truth: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float],
    title: str,
) -> None:
    """Test images with what was said of them; what is wrong is orange and names the truth."""
    columns = 8
    rows = -(-len(images) // columns)
    figure = _figure(columns * 1.35, rows * 1.62 + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, true, said, sure in zip(grid.flat, images, truth, predicted, confidence, strict=False):
        axes.imshow(image.squeeze(), cmap="gray", interpolation="nearest")
        right = true == said
        label = f"{said} {sure:.0%}" if right else f"{said} {sure:.0%}\nis {true}"
        axes.set_title(label, fontsize=8, color="black" if right else ORANGE)
    figure.suptitle(title)
    _save(figure, path)


def confusion_matrix(path: Path, truth: np.ndarray, predicted: np.ndarray, names: Sequence[str], title: str) -> None:
    """How often each class (rows) was called which (columns), in percent of its examples."""
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (truth, predicted), 1)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = _figure(1.8 + 0.6 * len(names), 1.4 + 0.52 * len(names))
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for (i, j), percent in np.ndenumerate(share):
        if percent >= 0.05:
            axes.text(
                j, i, f"{percent:.1f}", ha="center", va="center", fontsize=8, color="white" if percent > 55 else "black"
            )
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="said", ylabel="is", title=title)
    _save(figure, path)


def attention_maps(path: Path, maps: Sequence[tuple[np.ndarray, Sequence[str], Sequence[str]]], title: str) -> None:
    """What each token that was written (rows) looked at (columns): (weights [rows, columns], rows, columns) of each, one below
    the other."""
    heights = [0.9 + 0.25 * len(rows) for _, rows, _ in maps]
    figure = _figure(1.9 + 0.27 * max(len(columns) for _, _, columns in maps), 0.4 + sum(heights))
    grid = figure.subplots(len(maps), 1, squeeze=False, height_ratios=heights)
    for axes, (weights, rows, columns) in zip(grid[:, 0], maps, strict=True):
        axes.imshow(weights, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.xaxis.tick_top()
    figure.suptitle(title)
    _save(figure, path)


def coloured_words(path: Path, texts: Mapping[str, Sequence[tuple[str, float]]], title: str, width: int = 100) -> None:
    """Texts by their headings, each word in the colour of its weight: blue above 0, orange below, against the largest."""
    placed: list[tuple[int, int, str, float]] = []  # line, column, word, weight from -1 to 1
    headings, line = {}, 0
    for heading, weighted in texts.items():
        headings[line], line, column = heading, line + 1, 0
        largest = max((abs(weight) for _, weight in weighted), default=0) or 1
        for word, weight in weighted:
            if column + len(word) > width:
                line, column = line + 1, 0
            placed.append((line, column, word, weight / largest))
            column += len(word) + 1
        line += 2
    figure = _figure(0.2 + 0.078 * width, 0.5 + 0.19 * line)
    axes = figure.subplots()
    axes.set(xlim=(0, width), ylim=(line, -1))
    axes.axis("off")
    for at, heading in headings.items():
        axes.text(0, at, heading, fontsize=9, va="center", color=GREY)
    for at, column, word, weight in placed:
        color = colors.to_rgba(BLUE if weight > 0 else ORANGE, min(1, abs(weight)))
        box = {"facecolor": color, "edgecolor": "none", "boxstyle": "square,pad=0.12"}
        ink = "white" if abs(weight) > 0.6 else "black"
        axes.text(column, at, word, fontsize=8, va="center", family="monospace", color=ink, bbox=box)
    figure.suptitle(title)
    _save(figure, path)


def score_strips(path: Path, scores: Mapping[str, np.ndarray], aim: float, title: str) -> None:
    """Every score of each contestant as a dot, the mean as a bar, and a line at what is aimed at."""
    figure = _figure(7, 1.4 + 0.6 * len(scores))
    axes = figure.subplots()
    for row, (name, values) in enumerate(scores.items()):
        up = 0.25 * np.sin(2.4 * np.arange(len(values)))  # apart, so that equal scores can be told from one
        axes.scatter(values, row + up, s=12, color=BLUE, alpha=0.6, linewidths=0)
        axes.plot([np.mean(values)] * 2, [row - 0.35, row + 0.35], color=ORANGE, linewidth=2)
        axes.annotate(f"{name}: {np.mean(values):.0f} ± {np.std(values):.0f}", (0.01, row), fontsize=9, va="center",
                      xycoords=("axes fraction", "data"))  # fmt: skip
    axes.axvline(aim, color=GREY, linewidth=0.8, linestyle="--")
    lowest, highest = min(aim, *map(np.min, scores.values())), max(aim, *map(np.max, scores.values()))
    axes.set_xlim(lowest - 0.55 * (highest - lowest), highest + 0.05 * (highest - lowest))  # room for the names
    axes.set(xlabel="score", yticks=[], title=title)
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    _save(figure, path)


def image_rows(path: Path, rows: Mapping[str, np.ndarray], captions: Sequence[str], title: str) -> None:
    """Images side by side, a named row for each kind and a caption for each column."""
    figure = _figure(1.5 * len(captions) + 0.4, 1.6 * len(rows) + 0.5)
    grid = figure.subplots(len(rows), len(captions), squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image.squeeze(), cmap="gray", interpolation="nearest")
            axes.set(xticks=[], yticks=[])
    for axes, caption in zip(grid[0], captions, strict=True):
        axes.set_title(caption, fontsize=8)
    figure.suptitle(title)
    _save(figure, path)


def heated(images: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Grey images [n, height, width] (uint8) with orange where `heat`, blurred a little, is high for this sequence."""
    heat = ndimage.gaussian_filter(heat, (0, 1.5, 1.5))
    share = np.clip(heat / max(np.percentile(heat, 99.5), 1e-30), 0, 1)[..., None]
    orange = 255 * np.array(colors.to_rgb(ORANGE))
    return np.round((1 - share) * images[..., None] + share * orange).astype(np.uint8)


def film(path: Path, frames: np.ndarray, rate: float, scale: int = 2) -> None:
    """Frames [n, height, width, 3] (uint8) as an animated GIF, `rate` of them in a second, enlarged."""
    size = scale * frames.shape[2], scale * frames.shape[1]
    pictures = [Image.fromarray(frame).resize(size) for frame in frames]
    first, *others = [picture.quantize(64, dither=Image.Dither.NONE) for picture in pictures]  # noise is large in a GIF
    first.save(path, save_all=True, append_images=others, duration=round(1000 / rate), loop=0)


def boxes_page(
    path: Path,
    images: np.ndarray,
    truth: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    names: Sequence[str],
    title: str,
) -> None:
    """Scenes with what is there, dashed, and what was found: rows (left, top, right, bottom, score, label), blue if an
    object of that label is there (IoU of 0.5 at least), else orange."""
    columns = 5
    figure = _figure(columns * 1.9, -(-len(images) // columns) * 1.95 + 0.4)
    grid = figure.subplots(-(-len(images) // columns), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, there, rows in zip(grid.flat, images, truth, found, strict=False):
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_autoscale_on(False)  # a box that reaches beyond the image is cut
        for box in there:
            _outline(axes, box, "white", linewidth=0.8, linestyle="--")
        for row in rows:
            color = BLUE if any(row[5] == box[4] and _iou(row, box) >= 0.5 for box in there) else ORANGE
            _outline(axes, row, color, linewidth=1.3)
            said = f"{names[int(row[5])]} {row[4]:.2f}"
            axes.text(max(row[0], 0), max(row[1] - 1, 6), said, fontsize=5, color="white", va="bottom", clip_on=True,
                      bbox={"facecolor": color, "pad": 0.6, "linewidth": 0})  # fmt: skip
    figure.suptitle(title)
    _save(figure, path)


def _outline(axes: Any, box: np.ndarray, color: str, **line: Any) -> None:
    """Along the edges of the pixels: pixel i of an image covers [i - 0.5, i + 0.5] of the axes."""
    left, top, right, bottom = (float(x) - 0.5 for x in box[:4])
    axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=color, **line)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    width, height = np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2])
    common = max(width, 0) * max(height, 0)
    return common / (np.prod(a[2:4] - a[:2]) + np.prod(b[2:4] - b[:2]) - common)


def paired_bars(path: Path, values: Mapping[str, np.ndarray], names: Sequence[str], title: str) -> None:
    """Shares of 1, for each of `names` a bar of each contestant."""
    figure = _figure(1.5 + 0.75 * len(names), 3.2)
    axes = figure.subplots()
    width = 0.8 / len(values)
    for i, (contestant, heights) in enumerate(values.items()):
        at = np.arange(len(names)) + (i - (len(values) - 1) / 2) * width
        bars = axes.bar(at, heights, width, label=contestant, color=(BLUE, ORANGE, GREEN, GREY)[i])
        axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=1)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set(ylim=(0, 1.08), title=title)
    figure.legend(loc="outside lower center", ncols=len(values), frameon=False)
    _save(figure, path)


def ratio_bars(path: Path, ratios: Mapping[str, Mapping[str, float]], title: str) -> None:
    """Ratios to a reference, on a logarithmic axis: a panel for each quantity, a bar for each case, from 1 downwards for
    better and upwards for worse."""
    names = list(next(iter(ratios.values())))
    figure = _figure(2 + 2.6 * len(ratios), 1.4 + 0.26 * len(names))
    panels = figure.subplots(1, len(ratios), sharey=True, squeeze=False)[0]
    for axes, (quantity, by_case) in zip(panels, ratios.items(), strict=True):
        values = [by_case[name] for name in names]
        axes.barh(names, [v - 1 for v in values], left=1, color=[BLUE if v <= 1 else ORANGE for v in values])
        for i, v in enumerate(values):
            label = f"{v:.2f}" if v >= 0.01 else f"{v:.1g}"
            axes.annotate(label, (v, i), (3 if v > 1 else -3, 0), textcoords="offset points", fontsize=7,
                          va="center", ha="left" if v > 1 else "right")  # fmt: skip
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        low, high = min(*values, 0.7), max(*values, 1.3)
        room = max(2, (high / low) ** 0.25)  # for the labels
        axes.set_xlim(low / room, high * room)
        decades = (1e-4, 1e-3, 0.01, 0.1, 1, 10, 100)
        ticks = [
            t for t in (decades if low < 0.01 else (0.01, 0.03, 0.1, 0.3, 1, 3, 10)) if low / room <= t <= high * room
        ]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(quantity, fontsize=10)
    panels[0].invert_yaxis()
    figure.suptitle(title)
    _save(figure, path)


def growth_curves(
    path: Path, panels: Mapping[str, Mapping[str, Mapping[str, Mapping[int, float]]]], title: str
) -> None:
    """How quantities grow: a column of panels for each thing that is varied, a row for each quantity, a line for each
    variant. On logarithmic axes, where a power is a straight line. `panels[varied][quantity][variant][size]`."""
    quantities = list(next(iter(panels.values())))
    variants = dict.fromkeys(v for rows in panels.values() for by_variant in rows.values() for v in by_variant)
    looks = dict(
        zip(variants, itertools.cycle(zip((ORANGE, YELLOW, GREY, BLUE, PURPLE, GREEN), "os^Dvx", strict=True)))
    )
    figure = _figure(1 + 3.2 * len(panels), 0.9 + 2.3 * len(quantities))
    grid = figure.subplots(len(quantities), len(panels), sharex="col", squeeze=False)
    for column, (varied, rows) in zip(grid.T, panels.items(), strict=True):
        for axes, quantity in zip(column, quantities, strict=True):
            for variant, curve in rows[quantity].items():
                color, marker = looks[variant]
                axes.plot(list(curve), list(curve.values()), color=color, marker=marker, markersize=4, label=variant)
            axes.set(xscale="log", yscale="log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
            axes.grid(alpha=0.3)
        sizes = list(next(iter(rows[quantities[0]].values())))
        column[-1].set_xticks(sizes, [str(size) for size in sizes])
        column[-1].xaxis.set_minor_locator(NullLocator())
        column[-1].set_xlabel(varied)
    for axes, quantity in zip(grid[:, 0], quantities, strict=True):
        axes.set_ylabel(quantity)
    lines = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False)
    figure.suptitle(title)
    _save(figure, path)


def curves(
    path: Path,
    panels: Mapping[str, Mapping[str, Mapping[int, float]]],
    xlabel: str,
    ylabel: str,
    log: bool = False,
    title: str = "",
) -> None:
    """Lines beside each other, of one scale: `panels[title][name][x]`. On a logarithmic axis what is not positive is left
    out, and what is below 1e-30 or above 1e30 is not shown."""
    figure = _figure(1 + 4.4 * len(panels), 4.2)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (heading, lines) in zip(row, panels.items(), strict=True):
        for (name, line), color in zip(lines.items(), itertools.cycle((GREY, ORANGE, BLUE, PURPLE, GREEN, YELLOW))):
            axes.plot(list(line), list(line.values()), color=color, linewidth=1.4, label=name)
        axes.set(xlabel=xlabel, title=heading)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    row[0].set_ylabel(ylabel)
    if log:
        row[0].set_yscale("log")
        values = [
            y for axes in row for line in axes.get_lines() for y in np.asarray(line.get_ydata()) if 0 < y < np.inf
        ]
        row[0].set_ylim(max(min(values) / 3, 1e-30), min(max(values) * 3, 1e30))
    figure.suptitle(title)
    _save(figure, path)


def phase_diagram(
    path: Path, panels: Mapping[str, Sequence[Sequence[float]]], rows: Sequence[str], columns: Sequence[str], title: str
) -> None:
    """What happens in each of two conditions: a number for each of `rows` and `columns`, in colour and written out. A panel
    with numbers of both signs is blue below 0 and orange above; infinities are its ends."""
    figure = _figure(1.6 + 0.36 * len(columns) * len(panels), 2.2 + 0.27 * len(rows))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (heading, values) in zip(grid, panels.items(), strict=True):
        image = np.asarray(values, float)
        signed = (image < 0).any()
        shown = np.clip(image, -10, 10) if signed else image
        scale = {"cmap": _SIGNED, "vmin": -10, "vmax": 10} if signed else {"cmap": "cividis", "vmin": 0, "vmax": 100}
        axes.imshow(shown, aspect="auto", interpolation="nearest", **scale)
        for (i, j), value in np.ndenumerate(image):
            text = f"{value:.0f}" if np.isfinite(value) else "∞" if value > 0 else "-∞"
            dark = abs(shown[i, j]) > 6 if signed else shown[i, j] < 50
            axes.text(j, i, text.replace("-0", "0") if text == "-0" else text, ha="center", va="center", fontsize=6.5,
                      color="white" if dark else "black")  # fmt: skip
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.set_title(heading, fontsize=10)
    figure.suptitle(title)
    _save(figure, path)


def text_page(path: Path, pieces: Sequence[str], values: np.ndarray, title: str, columns: int = 100) -> None:
    """Text, each piece of which has a value: 0 is white, the largest orange. Lines are broken after so many characters."""
    characters = [(c, value) for piece, value in zip(pieces, values, strict=True) for c in piece.replace("\t", "    ")]
    lines: list[list[tuple[str, float]]] = [[]]
    for c, value in characters:
        if c == "\n" or len(lines[-1]) == columns:
            lines.append([])
        if c != "\n":
            lines[-1].append((c, value))
    image = np.zeros((len(lines), columns))
    for row, line in zip(image, lines, strict=True):
        row[: len(line)] = [value for _, value in line]
    size = 7.97  # points, at which a character of DejaVu Sans Mono is 8 pixels wide
    width, height = columns * 8 / 120, len(lines) * 1.35 * size / 72
    figure = Figure(figsize=(width + 0.2, height + 0.5), dpi=120)
    axes = figure.add_axes((0.1 / (width + 0.2), 0.1 / (height + 0.5), width / (width + 0.2), height / (height + 0.5)))
    axes.imshow(image, aspect="auto", cmap=_HEAT, vmin=0, interpolation="nearest", extent=(0, columns, len(lines), 0))
    axes.axis("off")
    for i, line in enumerate(lines):
        text = "".join(c if c.isprintable() else "·" for c, _ in line).replace("$", r"\$")
        axes.text(0, i + 0.5, text, family="DejaVu Sans Mono", fontsize=size, va="center_baseline")
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def _save(figure: Figure, path: Path) -> None:
    with matplotlib.rc_context({"savefig.facecolor": "white"}):
        figure.savefig(path, metadata={"Software": "fbp"})
