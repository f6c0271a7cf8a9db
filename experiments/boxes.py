"""Boxes (left, top, right, bottom): how much they overlap, which of many to keep, and how good a detector's are."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import UserError


def area(boxes):
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The common area of every box of a [n, 4] with every box of b [m, 4]: [n, m]."""
    a, b = a[:, None], b[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.prod(np.maximum(sides, 0), -1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of a with every box of b."""
    common = intersection(a, b)
    return common / np.maximum(area(a)[:, None] + area(b)[None] - common, 1e-9)


def generalized_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """IoU - |hull \\ union| / |hull|, box by box [..., 4] (Rezatofighi et al. 2019, alg. 1).

    Unlike IoU it has a gradient where the boxes do not touch, towards each other.
    """

    def rectangle(low, high):
        return jnp.prod(jnp.maximum(high - low, 0), -1)

    common = rectangle(jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:]))
    hull = rectangle(jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:]))
    union = area(a) + area(b) - common
    return common / jnp.maximum(union, 1e-9) - (hull - union) / jnp.maximum(hull, 1e-9)


def keep_best(found: np.ndarray, most_overlap: float, any_label: bool = False) -> np.ndarray:
    """Non-maximum suppression: of boxes of one label (or any) that overlap more than that, the one with the highest score.

    found: [n, 6], a row is (left, top, right, bottom, score, label).
    """
    found = found[np.argsort(-found[:, 4], kind="stable")]
    rivals = any_label | (found[:, None, 5] == found[None, :, 5])
    clash = rivals & (iou(found[:, :4], found[:, :4]) > most_overlap)
    kept = np.ones(len(found), bool)
    for i in range(len(found)):
        if kept[i]:
            kept[i + 1 :] &= ~clash[i, i + 1 :]
    return found[kept]


def coco() -> tuple[Any, Any]:
    """The two classes of COCO's own code. Asked for at the start of a run, it is missed then and not at its end."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise UserError(
            "COCO's evaluation is not installed. Install it with: pip install -r experiments/requirements/object_detection.txt"
        ) from None
    return COCO, COCOeval


def mean_average_precision(
    truth: Sequence[np.ndarray], found: Sequence[np.ndarray], classes: int
) -> tuple[dict[str, float], np.ndarray]:
    """mAP at IoU 0.5 and averaged over 0.5:0.95, and the AP of each class at 0.5, by COCO's own code (Lin et al. 2014).

    truth: for each image rows (left, top, right, bottom, label); found: rows as for `keep_best`.
    """
    COCO, COCOeval = coco()

    def record(image: int, row: np.ndarray, label: float, **more) -> dict:
        left, top, right, bottom = (float(x) for x in row[:4])
        box = [left, top, right - left, bottom - top]
        return {"image_id": image, "category_id": int(label), "bbox": box, "area": box[2] * box[3], **more}

    rows = [(i, row) for i, rows in enumerate(truth) for row in rows]
    annotations = [record(i, row, row[4], id=1 + n, iscrowd=0) for n, (i, row) in enumerate(rows)]
    said = [record(i, row, row[5], score=float(row[4])) for i, rows in enumerate(found) for row in rows]
    if not said:
        return {"map_50": 0.0, "map_50_95": 0.0}, np.zeros(classes)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports as it goes
        annotated = COCO()
        annotated.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(truth))],
            "annotations": annotations,
            "categories": [{"id": i} for i in range(classes)],
        }
        annotated.createIndex()
        evaluation = COCOeval(annotated, annotated.loadRes(said), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores = {"map_50": float(evaluation.stats[1]), "map_50_95": float(evaluation.stats[0])}
    by_class = evaluation.eval["precision"][0, :, :, 0, -1].mean(0)  # of [recall, class] at IoU 0.5
    return scores, np.where(by_class < 0, np.nan, by_class)  # of a class that is in no image
