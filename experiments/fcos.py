"""A one-stage detector without anchors (FCOS, Tian et al. 2019): its network, its loss, and how its answers are read.

Every STRIDE-th pixel in both directions is asked: of which class is the object around you, where are its sides, and how
central in it are you? One map of answers is enough here, where the objects' sizes span a factor of three; FCOS has five.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.boxes import generalized_iou
from fbp import nn

STRIDE = 4


def detector(classes: int, width: int) -> nn.Layer:
    """An hourglass (Newell et al. 2016) with FCOS's answers (Tian et al. 2019) at every STRIDE-th pixel:

    a logit for each class, the logit of how central the point is in its object, and the logarithms of the distances to
    the object's left, top, right and bottom side. At first it says of every point, with probability 0.99, that nothing
    is there (Lin et al. 2017, section 3.3): else the many points on the ground would drown the few others.
    """

    def conv(features, strides=1):
        return nn.sequential(nn.conv(features, (3, 3), strides, use_bias=False), nn.batch_norm(0.9), nn.relu())

    def hourglass(features, depth):
        refine = nn.residual(nn.sequential(conv(2 * features), conv(2 * features)))
        inner = [hourglass(2 * features, depth - 1)] if depth > 1 else []
        widen = nn.conv_transpose(features, (2, 2), strides=2)
        return nn.residual(nn.sequential(conv(2 * features, 2), refine, *inner, widen))

    def prior(key, shape, dtype=jnp.float32, out_sharding=None):
        return jnp.array([-np.log(0.99 / 0.01)] * classes + [0.0] + [1.0] * 4, dtype)

    first = conv(width, 2), conv(2 * width, 2), conv(2 * width)
    last = conv(4 * width), nn.conv(classes + 5, (1, 1), bias_init=prior)
    return nn.sequential(*first, hourglass(2 * width, 2), *last)


def points(size: int) -> np.ndarray:
    """(x, y) of the pixels that are asked: [n, 2]."""
    at = np.arange(STRIDE / 2, size, STRIDE, dtype=np.float32)
    return np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)


def assigned(where: np.ndarray, boxes: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each point [n, 2] the box [n, 4] and label [n] it has to find, -1 for none: a point near the centre of an
    object finds it, the smallest of several (Tian et al. 2019, section 3.1)."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    reach = jnp.minimum(1.5 * STRIDE, (boxes[:, 2:] - boxes[:, :2]) / 2)
    near = jnp.all(jnp.abs(where[:, None] - centres) < reach, -1) & (labels >= 0)
    areas = jnp.where(near, jnp.prod(boxes[:, 2:] - boxes[:, :2], -1), jnp.inf)
    smallest = jnp.argmin(areas, -1)
    return boxes[smallest], jnp.where(near.any(-1), labels[smallest], -1)


def answers(y: jax.Array, where: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The map [batch, height, width, classes + 5] as class logits, logits of centredness, and boxes, by point."""
    y = y.astype(jnp.float32).reshape(len(y), -1, y.shape[-1])
    sides = STRIDE * jnp.exp(jnp.minimum(y[..., -4:], 6.0))
    return y[..., :-5], y[..., -5], jnp.concatenate([where - sides[..., :2], where + sides[..., 2:]], -1)


def centredness(where: np.ndarray, boxes: jax.Array) -> jax.Array:
    """1 at the centre of a box, 0 at its sides: sqrt(min(l, r) / max(l, r) · min(t, b) / max(t, b)) (eq. 3 there)."""
    before, after = where - boxes[..., :2], boxes[..., 2:] - where
    ratios = jnp.maximum(jnp.minimum(before, after), 0) / jnp.maximum(jnp.maximum(before, after), 1e-6)
    return jnp.sqrt(ratios[..., 0] * ratios[..., 1])


def detection_loss(y: jax.Array, where: np.ndarray, boxes: jax.Array, labels: jax.Array) -> jax.Array:
    """Focal loss of the classes at every point (Lin et al. 2017, eq. 5); at those that have an object to find, GIoU loss of
    the box, weighted by how central the point is, and cross-entropy of that weight."""
    logits, central, found = answers(y, where)
    wanted, labels = jax.vmap(assigned, (None, 0, 0))(where, boxes, labels)
    positive = labels >= 0
    count = jnp.maximum(jnp.sum(positive), 1).astype(jnp.float32)
    classes = optax.sigmoid_focal_loss(logits, jax.nn.one_hot(labels, logits.shape[-1]), alpha=0.25, gamma=2.0)
    weight = jnp.where(positive, centredness(where, wanted), 0.0)
    boxes_apart = jnp.sum(weight * (1 - generalized_iou(found, wanted))) / jnp.maximum(jnp.sum(weight), 1e-6)
    centres = jnp.sum(jnp.where(positive, nn.sigmoid_binary_cross_entropy(central, weight), 0.0))
    return (jnp.sum(classes) + centres) / count + boxes_apart


def candidates(y: jax.Array, where: np.ndarray, most: int = 100) -> jax.Array:
    """The best answers of each scene: rows (left, top, right, bottom, score, label) [batch, most, 6]."""
    logits, central, boxes = answers(y, where)
    scores = jnp.sqrt(jax.nn.sigmoid(logits) * jax.nn.sigmoid(central)[..., None])
    best, place = jax.lax.top_k(scores.reshape(len(scores), -1), most)
    point, label = jnp.divmod(place, logits.shape[-1])
    boxes = jnp.take_along_axis(boxes, point[..., None], 1)
    return jnp.concatenate([boxes, best[..., None], label[..., None].astype(boxes.dtype)], -1)
