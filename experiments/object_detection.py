"""Find objects: what is in a scene, and where is each? A convolutional detector without anchors."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import datasets
from experiments.boxes import coco, keep_best, mean_average_precision
from experiments.fcos import candidates, detection_loss, detector, points
from experiments.harness import Config, Run, UserError, at_least, compare_with_jax, console, main
from experiments.scenes import Scenes, make_scenes
from experiments.sliding_window import looks, window_examples, windows
from fbp import nn, report, train

PRESETS = {
    "full": {"epochs": 25},
    "large": {"epochs": 25, "width": 64, "batch_size": 32, "size": 128, "test_scenes": 1000},
}


@dataclasses.dataclass(frozen=True)
class ObjectDetection(Config):
    preset: Literal["default", "full", "large"] = "default"
    """Sizes for ten minutes on two cores, for twenty, or for an accelerator."""
    data: Literal["animals", "fashion-mnist"] = "animals"
    """Scenes of animals in silhouette, or of articles of clothing."""
    data_folder: pathlib.Path | None = None
    """Where the files of the pictures are, if not where their package installs them."""
    size: int = 96
    """Of a scene, in pixels; a multiple of 16."""
    epochs: int = 12
    scenes: int = 8000
    """New ones in each epoch."""
    test_scenes: int = 400
    """Of pictures that are in no other scene."""
    batch_size: int = 16
    learning_rate: float = 3e-3
    width: int = 16
    """Features of the first convolution; deeper ones have two, four and eight times as many."""
    limit: int | None = None
    """Use only so many training and test pictures, for a quick look."""


def experiment(config: ObjectDetection, run: Run) -> None:
    at_least(config, seed=0, epochs=1, scenes=config.batch_size, test_scenes=1, batch_size=1, width=1, size=48, limit=1)
    if config.size % 16:
        raise UserError(
            f"--size {config.size} is not a multiple of 16, to which the detector narrows. Give one that is."
        )
    coco()
    images = datasets.load(config.data, config.data_folder)
    train_x, train_y, test_x, test_y = (a[: config.limit] for a in images[:4])
    test = make_scenes(config.test_scenes, test_x, test_y, config.size, np.random.default_rng(1))
    truth = [np.c_[boxes, labels][labels >= 0] for boxes, labels in zip(test.boxes, test.labels, strict=True)]
    classes, where = len(images.classes), points(config.size)
    layer = detector(classes, config.width)

    def new_scenes(batch, rng):
        return make_scenes(len(batch["scene"]), train_x, train_y, config.size, rng)._asdict()

    def loss_fn(params, model_state, batch, rng):
        y, model_state = layer.apply(params, model_state, batch["x"], train=True, rng=rng)
        return detection_loss(y, where, batch["boxes"], batch["labels"]), (model_state, {})

    @jax.jit
    def predict(state, x):
        return candidates(layer.apply(state.params, state.model_state, x)[0], where)

    def found(state, x):
        return [keep_best(rows[rows[:, 4] > 0.01], 0.6) for rows in train.evaluate(predict, state, x, 50)]

    def scores(state):
        return mean_average_precision(truth[:100], found(state, test.x[:100]), classes)[0]

    batches = train.Batches({"scene": np.arange(config.scenes)}, config.batch_size, config.seed, new_scenes)
    state, agreement = trained(config, run, "detector", layer, loss_fn, batches, scores)
    baseline = sliding_window(config, run, train_x, train_y, test.x, classes)
    detected = found(state, test.x)
    (metrics, by_class), (baseline_metrics, baseline_by_class) = (
        mean_average_precision(truth, boxes, classes) for boxes in (detected, baseline)
    )
    draw(run, images.classes, test, truth, {"detector": detected, "sliding_window": baseline})
    report.paired_bars(run.path("classes.png"), {"detector": by_class, "sliding window": baseline_by_class}, images.classes,
                       "average precision of each class at IoU 0.5")  # fmt: skip
    metrics |= {f"baseline_{name}": value for name, value in baseline_metrics.items()} | agreement
    for name, value in metrics.items():
        console.print(f"{name.replace('_', ' ')}: {value:.4g}")
    run.finish(metrics)


def trained(
    config: ObjectDetection, run: Run, name: str, layer: nn.Layer, loss_fn, batches: train.Batches, evaluate=None
):
    """The state after all epochs, from the last checkpoint on if there is one, and the comparison with jax.grad."""
    steps = config.epochs * batches.steps_per_epoch
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, steps // 10, steps)
    optimizer = optax.adamw(schedule, weight_decay=1e-4)
    first = next(batches.from_step(0))
    state = train.init_state(layer, optimizer, jax.random.key(config.seed), first["x"][:1])
    console.print(f"{name}: {sum(x.size for x in jax.tree.leaves(state.params)):,} weights, {steps:,} steps")
    agreement = compare_with_jax(loss_fn, state, first) if name == "detector" else {}
    checkpoints = train.Checkpoints(run.path(f"checkpoints_{name}"))
    if config.resume and checkpoints.latest() is not None:
        state = checkpoints.restore(state)
        console.print(f"resumed at step {int(state.step)} of {steps}")
    step, log = train.make_train_step(loss_fn, optimizer), run.path(f"metrics_{name}.jsonl")
    state = train.fit(state, step, batches, steps, metrics_file=log, checkpoints=checkpoints, evaluate=evaluate)
    checkpoints.close()
    return state, agreement


def sliding_window(
    config: ObjectDetection, run: Run, pictures, labels, test_x: np.ndarray, classes: int
) -> list[np.ndarray]:
    """The baseline: a classifier of windows, taught by windows on objects and beside them, asked at every window."""
    rng = np.random.default_rng((config.seed, 2))
    scenes = make_scenes(min(config.scenes, 2000), pictures, labels, config.size, rng)
    x, y = window_examples(scenes, classes, rng)
    layer = nn.conv_net(classes + 1, (8, 16, 32))

    def loss_fn(params, model_state, batch, rng):
        logits, model_state = layer.apply(params, model_state, batch["x"], train=True, rng=rng)
        return jnp.mean(nn.softmax_cross_entropy_with_integer_labels(logits, batch["y"])), (model_state, {})

    @jax.jit
    def predict(state, x):
        return jax.nn.softmax(layer.apply(state.params, state.model_state, x)[0])

    batches = train.Batches({"x": x, "y": y}, config.batch_size, config.seed)
    state, _ = trained(config, run, "sliding_window", layer, loss_fn, batches)
    boxes = windows(config.size)

    def found(image):
        sure = train.evaluate(predict, state, looks(image, boxes), len(boxes))[:, :classes]  # not the ground
        rows = np.c_[boxes, sure.max(-1), sure.argmax(-1)]
        return keep_best(rows[rows[:, 4] > 0.1], 0.3)

    return [found(image) for image in test_x]


def draw(run: Run, classes, test: Scenes, truth: list[np.ndarray], found: dict[str, list[np.ndarray]]) -> None:
    records = [json.loads(line) for line in run.path("metrics_detector.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["loss"] for r in records if "loss" in r}
    tested = {name: {r["step"]: r[name] for r in records if name in r} for name in ("map_50", "map_50_95")}
    report.learning_curve(run.path("learning_curve.png"), losses, tested, "the detector, on 100 of the test scenes")
    for name, rows in found.items():
        shown = [keep_best(boxes[boxes[:, 4] > 0.3], 0.5, any_label=True) for boxes in rows[:15]]
        title = f"{name.replace('_', ' ')}: right (blue), wrong (orange), and what is there (dashed)"
        report.boxes_page(run.path(f"{name}.png"), test.x[:15], truth[:15], shown, classes, title)
    pictures = ", ".join(str(path) for path in sorted(run.folder.glob("*.png")))
    console.print(f"pictures: {pictures}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(ObjectDetection, experiment, presets=PRESETS)
