"""What a detector without deep learning of places does: ask a classifier at every window of a scene."""

from __future__ import annotations

import numpy as np

from experiments.boxes import iou
from experiments.scenes import Scenes

WINDOW = 24  # pixels to which every window is brought
SHARES = 0.2, 0.3, 0.42  # of a scene's side: the longer sides of the windows
SHAPES = (1.0, 1.0), (1.0, 0.6), (0.6, 1.0)  # width and height, as shares of the longer side


def windows(size: int) -> np.ndarray:
    """All windows (left, top, right, bottom) of a scene, a third of the longer side apart: [n, 4]."""
    boxes = []
    for longer in (share * size for share in SHARES):
        for width, height in (longer * np.array(shape) for shape in SHAPES):
            x, y = (np.arange(0, size - side + 1e-6, longer / 3) for side in (width, height))
            left, top = (grid.ravel() for grid in np.meshgrid(x, y))
            boxes.append(np.stack([left, top, left + width, top + height], -1))
    return np.concatenate(boxes).astype(np.float32)


def looks(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """An image [height, width, 1] through windows: [n, WINDOW, WINDOW, 1], each from its nearest pixels."""
    steps = (np.arange(WINDOW) + 0.5) / WINDOW
    x, y = (boxes[:, i, None] + steps * (boxes[:, i + 2] - boxes[:, i])[:, None] for i in (0, 1))
    columns, rows = (np.clip(at, 0, len(image) - 1).astype(int) for at in (x, y))
    return image[rows[:, :, None], columns[:, None, :]]


def window_examples(scenes: Scenes, ground: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Looks at each object, a little off, and at twice as many windows labelled `ground`: half of them anywhere, half on a
    part of an object, which are the ones that are hard to tell."""
    x, y, every = [], [], windows(scenes.x.shape[1])
    for image, boxes, labels in zip(*scenes, strict=True):
        boxes, labels = boxes[labels >= 0], labels[labels >= 0]
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        near = boxes + 0.1 * sides * rng.uniform(-1, 1, boxes.shape).astype(np.float32)
        most = iou(every, boxes).max(1)
        partly, anywhere = (rng.permutation(every[(most >= low) & (most < 0.4)])[: len(boxes)] for low in (0.1, 0.0))
        beside = np.concatenate([partly, anywhere])
        x.append(looks(image, np.concatenate([near, beside])))
        y.append(np.concatenate([labels, np.full(len(beside), ground)]))
    return np.concatenate(x), np.concatenate(y).astype(np.int32)
