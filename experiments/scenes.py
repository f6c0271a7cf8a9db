"""Scenes of a few objects on a textured ground, made from pictures of single ones, with the box of each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.boxes import area, intersection

MOST = 5  # objects in a scene
CONTRAST = 0.25  # between an object and the ground around it, at least


class Scenes(NamedTuple):
    """x: float32 [n, size, size, 1] in [0, 1]; boxes: float32 [n, MOST, 4] as (left, top, right, bottom) in pixels;
    labels: int32 [n, MOST], -1 where there is no further object."""

    x: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def make_scenes(n: int, pictures: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator) -> Scenes:
    """n scenes of one to MOST of the pictures [m, height, width, 1], light objects on black with these labels [m]."""
    scenes = [scene(pictures[..., 0], labels, size, rng) for _ in range(n)]
    return Scenes(*(np.stack(parts) for parts in zip(*scenes, strict=True)))


def scene(pictures: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """One scene: its pixels, boxes and labels. It has fewer objects than it was to have if there is no place for one."""
    canvas = ground(size, rng)
    boxes, names = np.zeros((MOST, 4), np.float32), np.full(MOST, -1, np.int32)
    for i in range(rng.integers(1, MOST + 1)):
        which = rng.integers(len(pictures))
        values = resized(cropped(pictures[which], 0.1), rng.uniform(0.18, 0.5) * size, rng)
        height, width = values.shape
        for _ in range(20):  # for a place where neither hides much of the other
            left, top = rng.integers(0, size - width + 1), rng.integers(0, size - height + 1)
            box = np.array([left, top, left + width, top + height], np.float32)
            smaller = np.minimum(area(box), area(boxes[:i]))
            if (intersection(box[None], boxes[:i])[0] <= 0.3 * smaller).all():
                place(values, canvas[top : top + height, left : left + width], rng)
                boxes[i], names[i] = box, labels[which]
                break
        else:
            break
    noisy = canvas + 0.02 * rng.standard_normal(canvas.shape)
    return np.clip(noisy, 0, 1).astype(np.float32)[..., None], boxes, names


def ground(size: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of three scales about a random grey."""
    grids = [rng.standard_normal((n, n)).astype(np.float32) for n in (3, 8, 24)]
    layers = [np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)) for grid in grids]
    return rng.uniform(0.25, 0.75) + 0.1 * layers[0] + 0.06 * layers[1] + 0.04 * layers[2]


def cropped(picture: np.ndarray, threshold: float) -> np.ndarray:
    """Without the rows and columns around the object, which have nothing brighter than the threshold."""
    rows, columns = (np.flatnonzero((picture > threshold).any(axis)) for axis in (1, 0))
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if rows.size else picture


def resized(picture: np.ndarray, longest: float, rng: np.random.Generator) -> np.ndarray:
    """With this longest side, a little stretched or squeezed, and turned to the other side half of the time."""
    height, width = np.array(picture.shape) * rng.uniform(0.87, 1.15, 2)
    scale = longest / max(height, width)
    shape = max(round(width * scale), 4), max(round(height * scale), 4)
    values = np.asarray(Image.fromarray(picture).resize(shape, Image.Resampling.BILINEAR))
    return values[:, ::-1] if rng.random() < 0.5 else values


def place(values: np.ndarray, under: np.ndarray, rng: np.random.Generator) -> None:
    """Draws an object into its part of the canvas: lighter or darker than that by CONTRAST at least, its own shades kept."""
    opaque = np.clip(4 * values, 0, 1)
    around, difference = under.mean(), rng.uniform(CONTRAST, 0.45)
    lighter = around + difference <= 1 and (around - difference < 0 or rng.random() < 0.5)
    tone = around + difference if lighter else around - difference
    relief = values - values[opaque > 0.5].mean() if (opaque > 0.5).any() else 0.0
    under[:] = (1 - opaque) * under + opaque * (tone + 0.2 * relief)
