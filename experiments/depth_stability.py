"""Why deep networks do not train, and what makes them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.nn import initializers

import fbp
from experiments import datasets
from experiments import deep_networks as deep
from experiments.deep_networks import Kind, block, cross_entropy, network
from experiments.depth_report import Curves, draw_kinds, speedups
from experiments.depth_survey import Found, Task, alike, growth, survey
from experiments.harness import Config, Run, UserError, at_least, compare_with_jax, console, main
from fbp import nn, report, train


@dataclasses.dataclass(frozen=True)
class DepthStability(Config):
    preset: Literal["default", "full"] = "default"
    """Sets the depths below: for a quarter of an hour, or an hour."""
    data: Literal["animals", "fashion-mnist", "digits"] = "animals"
    depths: tuple[int, ...] = (100,)
    """At each, every kind of network is measured and trained."""
    activations: tuple[str, ...] = tuple(deep.ACTIVATIONS)
    """Of these kinds of network."""
    normalizations: tuple[str, ...] = deep.NORMALIZATIONS
    train_depth: int = 1000
    """Networks that are deeper are measured only (but for the deepest one)."""
    width: int = 32
    """Features of every layer."""
    steps: int = 100
    """For which each kind of network is trained."""
    learning_rate: float = 1e-3
    """Of Adam."""
    flow_depths: tuple[int, ...] = (2, 10, 100, 1000, 10_000)
    """At each, the gradient flow of nine well-known networks is measured."""
    deepest: int = 10_000
    """Layers of the deepest network."""
    deepest_epochs: int = 4
    claim_width: int = 128
    """Features of the 32-layer networks with which ReZero is compared."""
    claim_epochs: int = 20
    """Of the comparisons with the claims of Ioffe & Szegedy and of Bachlechner et al."""
    batch_size: int = 64
    limit: int | None = None
    """Use only so many training and test images, for a quick look."""


PRESETS = {"full": {"depths": (2, 10, 100, 1000, 10_000), "train_depth": 100}}
BEFORE = [Kind("sigmoid", "naive"), Kind("tanh", "naive"), Kind("relu", "naive"), Kind("relu", "He", residual="plain")]
AFTER = [
    Kind("tanh", "orthogonal"), Kind("relu", "He"), Kind("relu", "He", "batch"), Kind("relu", "He", "layer", "pre-norm"),
    Kind("relu", "He", residual="ReZero"),
]  # fmt: skip
CLAIM = [
    Kind("relu", "He"), Kind("relu", "He", "layer"), Kind("relu", "He", "none", "plain"),
    Kind("relu", "He", "layer", "post-norm"), Kind("relu", "He", "layer", "pre-norm"), Kind("relu", "He", "none", "ReZero"),
]  # fmt: skip
FLOWS = 2  # the gradient flows if the norms at the first and the last layer are within a factor of 100
LEARNS = 0.5  # a network that classifies more than half of the test images learns; one in ten is chance


def experiment(config: DepthStability, run: Run) -> None:
    least = dict.fromkeys(("width", "deepest", "deepest_epochs", "claim_width", "claim_epochs", "batch_size"), 1)
    at_least(config, seed=0, limit=config.batch_size, steps=0, **least)
    known = {"activations": deep.ACTIVATIONS, "normalizations": deep.NORMALIZATIONS}
    for option, names in known.items():
        if unknown := set(getattr(config, option)) - set(names):
            raise UserError(f"--{option}: {', '.join(sorted(unknown))} unknown. Choose from: {', '.join(names)}.")
    if min(*config.depths, *config.flow_depths) < 1:
        raise UserError("--depths and --flow-depths are numbers of layers. Give numbers of at least 1.")
    *arrays, classes = datasets.load(config.data, None)
    images = datasets.Images(*(a[: config.limit] for a in arrays), classes=classes)
    found = every_kind(config, run, images)
    draw_kinds(config, run, found, BEFORE, AFTER)
    metrics = deepest(config, run, images)
    claims = {"batch norm": batch_norm_claim(config, run, images), "ReZero": rezero_claim(config, run, images)}
    report.curves(run.path("claims.png"), claims, xlabel="step", ylabel="test accuracy")
    for claim, curves in claims.items():
        metrics |= speedups(claim.replace(" ", "_").lower(), curves)
    for depth in config.depths:
        rows = [row for key, row in found.items() if key[0] == depth]
        metrics[f"kinds_whose_gradient_flows_at_{depth}"] = sum(abs(growth(row["norms"])) <= FLOWS for row in rows)
        if depth <= config.train_depth:
            metrics[f"kinds_that_learn_at_{depth}"] = sum((row["test_accuracy"] or 0) > LEARNS for row in rows)
    for name, value in metrics.items():
        console.print(f"{name.replace('_', ' ')}: {'never' if value is None else f'{value:.4g}'}")
    run.finish(metrics)


def every_kind(config: DepthStability, run: Run, images: datasets.Images) -> Found:
    """The gradient flow at first and the accuracy after training: of all kinds at `depths`, of some at `flow_depths`."""
    groups = alike(deep.kinds(config.activations, config.normalizations))
    tasks = [Task(depth, group, depth <= config.train_depth) for depth in config.depths for group in groups]
    grid = {(task.depth, kind) for task in tasks for kind in task.kinds}
    tasks += [Task(d, [kind], False) for d in config.flow_depths for kind in BEFORE + AFTER if (d, kind) not in grid]
    stream = train.Batches({"x": images.train_x, "y": images.train_y}, config.batch_size, config.seed).from_step(0)
    batches = list(itertools.islice(stream, 1 + config.steps))
    test = {"x": images.test_x[:1000], "y": images.test_y[:1000]}
    optimizer, rng = optax.adam(config.learning_rate), jax.random.key(config.seed)
    return survey(run.path("kinds.jsonl"), tasks, config.width, batches, test, optimizer, rng)


# ----------------------------------------------------------------------------------- networks trained one by one


def trained(config: DepthStability, run: Run, images, name: str, net: nn.Layer, optimizer, epochs: int):
    """Trains a network, under a name; what was logged of it: {"loss": {step: ...}, "test_accuracy": {step: ...}}."""
    batches = train.Batches({"x": images.train_x, "y": images.train_y}, config.batch_size, config.seed)
    state = train.init_state(net, optimizer, jax.random.key(config.seed), images.train_x[:1])
    predict = jax.jit(lambda state, x: net.apply(state.params, state.model_state, x)[0])

    def scores(state):
        return {"test_accuracy": np.mean(np.argmax(train.evaluate(predict, state, images.test_x), -1) == images.test_y)}

    checkpoints = train.Checkpoints(run.path("checkpoints") / name.replace(" ", "_"))
    if config.resume and checkpoints.latest() is not None:
        state = checkpoints.restore(state)
    console.print(f"{name}: {sum(x.size for x in jax.tree.leaves(state.params)):,} weights")
    step, log = train.make_train_step(cross_entropy(net), optimizer), run.path(f"{name.replace(' ', '_')}.jsonl")
    steps = epochs * batches.steps_per_epoch
    train.fit(state, step, batches, steps, metrics_file=log, checkpoints=checkpoints, evaluate=scores)
    checkpoints.close()
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return {key: {r["step"]: r[key] for r in records if key in r} for key in ("loss", "test_accuracy")}


def deepest(config: DepthStability, run: Run, images: datasets.Images) -> dict[str, Any]:
    """A network that trains because each of its layers begins as the identity, the same without, and a linear classifier."""
    width, depth = config.width, config.deepest
    keep_every = max(k for k in range(1, int(depth**0.5) + 1) if depth % k == 0)
    nets = {
        "ReZero": network(block(Kind("relu", "He", residual="ReZero"), width), width, depth, keep_every),
        "without": network(block(Kind("relu", "He"), width), width, depth, keep_every),
        "linear": nn.sequential(nn.flatten(), nn.dense(10)),
    }
    batches = train.Batches({"x": images.train_x, "y": images.train_y}, config.batch_size, config.seed)
    optimizer, loss_fn = optax.adam(config.learning_rate), cross_entropy(nets["ReZero"])
    batch = next(batches.from_step(0))
    state = train.init_state(nets["ReZero"], optimizer, jax.random.key(config.seed), batch["x"])
    metrics = compare_with_jax(loss_fn, state, batch) | megabytes(loss_fn, state, batch)
    logs = {
        name: trained(config, run, images, f"deepest {name}", net, optimizer, config.deepest_epochs)
        for name, net in nets.items()
    }
    tested = {name: log["test_accuracy"] for name, log in logs.items()}
    report.learning_curve(run.path("deepest.png"), logs["ReZero"]["loss"], tested, f"{depth:,} layers")
    ours, without, linear = ([*accuracies.values()][-1] for accuracies in tested.values())
    return metrics | {
        "deepest_test_accuracy": ours, "baseline_deepest_test_accuracy": without, "baseline_linear_test_accuracy": linear
    }  # fmt: skip


def megabytes(loss_fn, state, batch) -> dict[str, Any]:
    """What the gradient needs in memory beside parameters and result, by fbp and by jax.grad, which keeps all of each layer."""
    found = {}
    for name, grad in {"deepest_megabytes": fbp.grad, "baseline_deepest_megabytes": jax.grad}.items():
        lowered = jax.jit(grad(loss_fn, has_aux=True)).lower(state.params, state.model_state, batch, None)
        memory = lowered.compile().memory_analysis()
        found[name] = memory and memory.temp_size_in_bytes / 2**20
    return found


def batch_norm_claim(config: DepthStability, run: Run, images: datasets.Images) -> Curves:
    """Three layers of 100 sigmoids, from small Gaussian weights, with and without batch norm (Ioffe & Szegedy 2015, fig. 1a)."""

    def net(*norm):
        dense = lambda features: nn.dense(features, kernel_init=initializers.normal(0.1))
        return nn.sequential(nn.flatten(), *(x for _ in range(3) for x in (dense(100), *norm, nn.sigmoid())), dense(10))

    nets = {"sigmoid": net(), "sigmoid batch": net(nn.batch_norm(0.9))}
    return tested(config, run, images, nets, optax.sgd(0.1))


def rezero_claim(config: DepthStability, run: Run, images: datasets.Images) -> Curves:
    """32 layers of relu, bare, normalized, residual, both, and with ReZero (Bachlechner et al. 2020)."""
    nets = {str(kind): network(block(kind, config.claim_width), config.claim_width, 32) for kind in CLAIM}
    return tested(config, run, images, nets, optax.adagrad(0.01))


def tested(config: DepthStability, run: Run, images, nets: Mapping[str, nn.Layer], optimizer) -> Curves:
    logs = {name: trained(config, run, images, name, net, optimizer, config.claim_epochs) for name, net in nets.items()}
    return {name: log["test_accuracy"] for name, log in logs.items()}


if __name__ == "__main__":
    main(DepthStability, experiment, presets=PRESETS)
