"""Recognise images: which of ten animals is it, and is it a cat?"""

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
from experiments.harness import Config, Run, at_least, compare_with_jax, console, main
from fbp import nn, report, train


@dataclasses.dataclass(frozen=True)
class ImageRecognition(Config):
    data: Literal["animals", "fashion-mnist", "digits"] = "animals"
    """Ten animals in silhouette; ten articles of clothing; ten digits."""
    data_folder: pathlib.Path | None = None
    """Where the files of the data set are, if not where their package installs them."""
    model: Literal["conv", "mlp", "residual"] = "conv"
    """A convolutional net with batch norm, dense layers only, or a small residual net."""
    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 3e-3
    """The highest of a cosine schedule with warm-up."""
    weight_decay: float = 1e-2
    label_smoothing: float = 0.1
    augment: bool = True
    """Flips and shifts by up to two pixels while training (not for digits)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the forward and the backward pass compute in."""
    limit: int | None = None
    """Use only so many training and test images, for a quick look."""


MODELS = {
    "conv": lambda: nn.conv_net(10, (16, 32, 64)),
    "mlp": lambda: nn.mlp((256, 128, 10), rate=0.2),
    "residual": lambda: nn.residual_net(10),
}


def experiment(config: ImageRecognition, run: Run) -> None:
    at_least(config, seed=0, epochs=1, batch_size=1, limit=config.batch_size)
    images = datasets.load(config.data, config.data_folder)
    train_x, train_y, test_x, test_y = (a[: config.limit] for a in images[:4])
    layer = MODELS[config.model]()
    batches = train.Batches({"x": train_x, "y": train_y}, config.batch_size, config.seed, augmentation(config))
    steps = config.epochs * batches.steps_per_epoch
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, steps // 10, steps)
    optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)
    policy = train.FLOAT32 if config.precision == "float32" else train.BFLOAT16

    def loss_fn(params, model_state, batch, rng):
        logits, model_state = layer.apply(params, model_state, batch["x"], train=True, rng=rng)
        targets = optax.smooth_labels(jax.nn.one_hot(batch["y"], len(images.classes)), config.label_smoothing)
        loss = jnp.mean(nn.softmax_cross_entropy(logits.astype(jnp.float32), targets))
        return loss, (model_state, {"train_accuracy": jnp.mean(jnp.argmax(logits, -1) == batch["y"])})

    @jax.jit
    def predict(state, x):
        return jax.nn.softmax(layer.apply(state.params, state.model_state, x)[0])

    def scores(state):
        predicted = np.argmax(train.evaluate(predict, state, test_x), -1)
        return {"test_accuracy": np.mean(predicted == test_y)}

    state = initial = train.init_state(layer, optimizer, jax.random.key(config.seed), train_x[:1])
    names = report.parameter_names(state.params)
    checkpoints = train.Checkpoints(run.path("checkpoints"))
    if config.resume:
        state = checkpoints.restore(state) if checkpoints.latest() is not None else state
        console.print(f"resumed at step {int(state.step)} of {steps}")
    weights = sum(x.size for x in jax.tree.leaves(state.params))
    console.print(
        f"{config.data}: {len(train_x)} training and {len(test_x)} test images; {config.model}: {weights:,} weights"
    )
    agreement = compare_with_jax(loss_fn, initial, next(batches.from_step(0)))

    step = train.make_train_step(loss_fn, optimizer, policy=policy)
    state = train.fit(
        state, step, batches, steps, metrics_file=run.path("metrics.jsonl"), checkpoints=checkpoints, evaluate=scores
    )
    checkpoints.close()

    probabilities = train.evaluate(predict, state, test_x)
    draw(run, images, test_x, test_y, probabilities, names)
    predicted = np.argmax(probabilities, -1)
    metrics = {"test_accuracy": float(np.mean(predicted == test_y)), **agreement}
    if "cat" in images.classes:
        metrics |= cat_or_not(predicted == images.classes.index("cat"), test_y == images.classes.index("cat"))
    for name, value in metrics.items():
        console.print(f"{name.replace('_', ' ')}: {value:.4g}")
    run.finish(metrics)


def augmentation(config: ImageRecognition):
    if not config.augment or config.data == "digits":
        return None

    def transform(batch, rng):
        x = batch["x"]
        flipped = np.where(rng.random((len(x), 1, 1, 1)) < 0.5, x[:, :, ::-1], x)
        padded = np.pad(flipped, [(0, 0), (2, 2), (2, 2), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, x.shape[1:3], (1, 2))
        down, right = rng.integers(0, 5, (2, len(x)))
        shifted = windows[np.arange(len(x)), down, right]  # [batch, channels, height, width]
        return {**batch, "x": np.moveaxis(shifted, 1, -1)}

    return transform


def cat_or_not(said: np.ndarray, is_cat: np.ndarray) -> dict[str, float]:
    """The second question. One in ten is a cat, so accuracy says little; always saying no has balanced accuracy 1/2."""
    recall, specificity = np.mean(said[is_cat]), np.mean(~said[~is_cat])
    return {"cat_balanced_accuracy": float((recall + specificity) / 2), "cat_recall": float(recall)}


def draw(run: Run, images: datasets.Images, test_x, test_y, probabilities, parameters) -> None:
    records = [json.loads(line) for line in run.path("metrics.jsonl").read_text().splitlines()]
    logged = {r["step"]: r for r in records if "loss" in r}
    tested = {r["step"]: r["test_accuracy"] for r in records if "test_accuracy" in r}
    losses = {step: r["loss"] for step, r in logged.items()}
    report.learning_curve(run.path("learning_curve.png"), losses, {"test_accuracy": tested})
    report.gradient_flow(
        run.path("gradient_norms.png"), {step: r["grad_norm"] for step, r in logged.items()}, parameters
    )
    predicted = np.argmax(probabilities, -1)
    names = np.array(images.classes)
    wrong = np.flatnonzero(predicted != test_y)[:16]  # half a page of mistakes, if there are so many
    right = np.flatnonzero(predicted == test_y)[: 48 - len(wrong)]
    shown = np.concatenate([right, wrong])
    labels = list(names[test_y[shown]]), list(names[predicted[shown]]), list(probabilities[shown].max(-1))
    title = f"test images; orange: {len(wrong)} of the {np.sum(predicted != test_y)} mistakes"
    report.image_page(run.path("predictions.png"), test_x[shown], *labels, title)
    report.confusion_matrix(
        run.path("confusion_matrix.png"), test_y, predicted, images.classes, "percent of each class"
    )
    console.print(
        f"pictures: {', '.join(str(p) for p in sorted(run.folder.glob('*.png')))}", markup=False, soft_wrap=True
    )


if __name__ == "__main__":
    main(ImageRecognition, experiment)
