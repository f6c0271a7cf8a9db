"""Recognise images: which of ten animals is it, and is it a cat?"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.ensemble import RandomForestClassifier

from experiments import datasets
from experiments.harness import (
    Config,
    Run,
    UserError,
    at_least,
    compare_with_jax,
    console,
    draw_training,
    main,
    name_pictures,
    saved_config,
)
from fbp import nn, report, train


@dataclasses.dataclass(frozen=True)
class ImageRecognition(Config):
    preset: Literal["default", "full", "large"] = "default"
    """Sets model, epochs, batches and precision: for some minutes of two cores, the better part of an hour, or a GPU."""
    data: Literal["animals", "fashion-mnist", "digits", "cifar-10", "folder"] = "animals"
    """Ten animals in silhouette; ten articles of clothing; ten digits; ten kinds of small photographs; your own images."""
    data_folder: pathlib.Path | None = None
    """Where the files of the data set are, if not where their package installs them; of your own, a folder for each class."""
    size: int = 32
    """Height and width, in pixels, to which your own images are brought."""
    model: Literal["conv", "mlp", "residual", "wide"] = "conv"
    """A convolutional net with batch norm, dense layers only, a small residual net, or one with twice its features."""
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
    predict: tuple[pathlib.Path, ...] = ()
    """Train nothing, but say what is on these images, by the run of --checkpoint."""
    checkpoint: pathlib.Path | None = None
    """The folder of a run."""


PRESETS = {
    "full": {"model": "residual", "epochs": 10},
    "large": {"model": "wide", "epochs": 60, "batch_size": 256, "precision": "bfloat16"},
}
MODELS = {
    "conv": lambda classes: nn.conv_net(classes, (16, 32, 64)),
    "mlp": lambda classes: nn.mlp((256, 128, classes), rate=0.2),
    "residual": lambda classes: nn.residual_net(classes, (32, 64, 128)),
    "wide": lambda classes: nn.residual_net(classes, (64, 128, 256)),
}


def experiment(config: ImageRecognition, run: Run) -> None:
    at_least(config, seed=0, epochs=1, batch_size=1, size=8, limit=config.batch_size)
    if config.predict:
        return say_what_is_on(config.predict, config.checkpoint)
    images = datasets.load(config.data, config.data_folder, config.size)
    run.write("images.json", {"classes": images.classes, "shape": images.train_x.shape[1:]})
    train_x, train_y, test_x, test_y = (a[: config.limit] for a in images[:4])
    layer = MODELS[config.model](len(images.classes))
    batches = train.Batches({"x": train_x, "y": train_y}, config.batch_size, config.seed, augmentation(config))
    steps = config.epochs * batches.steps_per_epoch
    optimizer = make_optimizer(config, steps)
    policy = train.FLOAT32 if config.precision == "float32" else train.BFLOAT16

    def loss_fn(params, model_state, batch, rng):
        logits, model_state = layer.apply(params, model_state, batch["x"], train=True, rng=rng)
        targets = optax.smooth_labels(jax.nn.one_hot(batch["y"], len(images.classes)), config.label_smoothing)
        loss = jnp.mean(nn.softmax_cross_entropy(logits.astype(jnp.float32), targets))
        return loss, (model_state, {"train_accuracy": jnp.mean(jnp.argmax(logits, -1) == batch["y"])})

    predict = make_predict(layer, config)

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
    metrics["baseline_test_accuracy"] = random_forest(train_x, train_y, test_x, test_y, config.seed)
    if "cat" in images.classes:
        metrics |= cat_or_not(predicted == images.classes.index("cat"), test_y == images.classes.index("cat"))
    for name, value in metrics.items():
        console.print(f"{name.replace('_', ' ')}: {value:.4g}")
    run.finish(metrics)


def say_what_is_on(files: Sequence[pathlib.Path], folder: pathlib.Path | None) -> None:
    """Prints, for each file, the likeliest classes by a trained model."""
    if folder is None:
        raise UserError("--predict needs a trained model: name the folder of its run with --checkpoint.")
    config = saved_config(ImageRecognition, folder, "--checkpoint")
    about = json.loads((folder / "images.json").read_text())
    height, _, channels = about["shape"]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise UserError(f"--predict: there is no file {', '.join(missing)}.")
    read = [(file, datasets.picture(file, file.read_bytes())) for file in files]
    known = [(file, image) for file, image in read if image is not None]
    if not known:
        raise UserError("--predict: none of the files is an image that can be read.")
    x = np.stack([datasets.pixels(image, height, channels == 1) for _, image in known]).astype(np.float32) / 255
    layer = MODELS[config.model](len(about["classes"]))
    state = train.init_state(layer, make_optimizer(config, 10), jax.random.key(0), x[:1])
    state = train.Checkpoints(folder / "checkpoints").restore(state)
    probabilities = make_predict(layer, config)(state, x)
    for (file, _), row in zip(known, np.asarray(probabilities), strict=True):
        likeliest = ", ".join(f"{about['classes'][i]} {row[i]:.1%}" for i in np.argsort(-row)[:3])
        console.print(f"{file}: {likeliest}", markup=False, soft_wrap=True)


def make_optimizer(config: ImageRecognition, steps: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, steps // 10, steps)
    return optax.adamw(schedule, weight_decay=config.weight_decay)


def make_predict(layer: nn.Layer, config: ImageRecognition):
    """(state, x) -> probabilities; their mean over an image and its mirror image, where training has flipped images (Krizhevsky
    et al. 2012, section 4.1)."""

    @jax.jit
    def predict(state, x):
        views = (x, x[:, :, ::-1]) if augments(config) else (x,)
        return sum(jax.nn.softmax(layer.apply(state.params, state.model_state, view)[0]) for view in views) / len(views)

    return predict


def augments(config: ImageRecognition) -> bool:
    return config.augment and config.data != "digits"  # the mirror image of a digit is not one


def augmentation(config: ImageRecognition):
    if not augments(config):
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


def random_forest(train_x, train_y, test_x, test_y, seed: int) -> float:
    """The test accuracy of the baseline: 200 trees (Breiman 2001), which see an image as a row of numbers."""
    forest = RandomForestClassifier(200, random_state=seed, n_jobs=-1).fit(train_x.reshape(len(train_x), -1), train_y)
    return float(forest.score(test_x.reshape(len(test_x), -1), test_y))


def cat_or_not(said: np.ndarray, is_cat: np.ndarray) -> dict[str, float]:
    """The second question. One in ten is a cat, so accuracy says little; always saying no has balanced accuracy 1/2."""
    recall, specificity = np.mean(said[is_cat]), np.mean(~said[~is_cat])
    return {"cat_balanced_accuracy": float((recall + specificity) / 2), "cat_recall": float(recall)}


def draw(run: Run, images: datasets.Images, test_x, test_y, probabilities, parameters) -> None:
    draw_training(run, parameters, "test_accuracy")
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
    name_pictures(run)


if __name__ == "__main__":
    main(ImageRecognition, experiment, presets=PRESETS)
