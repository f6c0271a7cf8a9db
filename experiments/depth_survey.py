"""How the gradient flows through deep networks of many kinds, and which of them learn."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from rich.progress import track

import fbp
from experiments.deep_networks import Kind, block, cross_entropy, network
from fbp import nn, train

Found = dict[tuple, dict[str, Any]]  # what was measured, by depth and kind


def gradient_flow(layer: nn.Layer, width: int, depth: int, params, model_state, batch) -> jax.Array:
    """‖x̄_l‖ of the output x_l of each layer of `network(layer, width, depth)`: [depth].

    It is had as the gradient of a zero that is added to x_l. (The gradient of the weights is no measure for all kinds: with
    ReZero it is 0 at first, whatever flows.)"""

    def apply(params, state, x, **options):
        y, state = layer.apply(params["layer"], state, x, **options)
        return y + params["zero"], state

    loss_fn = cross_entropy(network(layer._replace(apply=apply), width, depth))

    def loss(zero):
        with_zero = params | {"stack_0": {"layer": params["stack_0"], "zero": zero}}
        return loss_fn(with_zero, model_state, batch, None)[0]

    x_bar = fbp.grad(loss)(jnp.zeros((depth, len(batch["x"]), width)))
    return jnp.sqrt(jnp.sum(jnp.square(x_bar), (1, 2)))


def measure(
    group: Sequence[Kind],
    width: int,
    depth: int,
    batches: Sequence[Any],
    test: Any,
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
) -> tuple[np.ndarray, np.ndarray]:
    """Networks that differ in their initialization alone, side by side in one program: ‖x̄_l‖ of each layer, on the first of
    the batches, and the test accuracy after training on all but that one (NaN if there is no other): [kinds, depth], [kinds].
    """
    layer, *_ = layers = [block(kind, width) for kind in group]
    net, first = network(layer, width, depth), batches[0]
    states = [train.init_state(network(one, width, depth), optimizer, rng, first["x"]) for one in layers]
    states = jax.tree.map(lambda *xs: jnp.stack(xs), *states)
    norms = jax.jit(jax.vmap(lambda s: gradient_flow(layer, width, depth, s.params, s.model_state, first)))(states)
    if len(batches) == 1:
        return np.asarray(norms), np.full(len(group), np.nan)
    step = train.make_train_step(cross_entropy(net), optimizer)

    def accuracy(state, batches):
        state, _ = lax.scan(lambda state, batch: (step(state, batch)[0], None), state, batches)
        logits, _ = net.apply(state.params, state.model_state, test["x"])
        return jnp.mean(jnp.argmax(logits, -1) == test["y"])

    stacked = jax.tree.map(lambda *xs: np.stack(xs), *batches[1:])
    return np.asarray(norms), np.asarray(jax.jit(jax.vmap(accuracy, (0, None)))(states, stacked))


class Task(NamedTuple):
    """Networks to measure together, which differ in their initialization alone."""

    depth: int
    kinds: Sequence[Kind]
    train: bool


def alike(kinds: Iterable[Kind]) -> list[list[Kind]]:
    """The kinds in groups that differ in their initialization alone: each group is one program."""
    program = lambda kind: kind._replace(initialization="")
    return [list(group) for _, group in itertools.groupby(sorted(kinds, key=lambda k: (program(k), k)), program)]


def survey(
    file: pathlib.Path,
    tasks: Sequence[Task],
    width: int,
    batches: Sequence[Any],
    test: Any,
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
) -> Found:
    """Measures the tasks, of which a line for each network goes to a file; what is in the file already is not done again."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be half a line
    found = {(row["depth"], *row["kind"]): row for row in rows}
    file.write_text("".join(json.dumps(row) + "\n" for row in found.values()))
    with file.open("a") as log:
        for depth, kinds, trains in track(tasks, "networks of every kind"):
            if all((depth, *kind) in found for kind in kinds):
                continue
            measured = measure(kinds, width, depth, batches if trains else batches[:1], test, optimizer, rng)
            for kind, norms, accuracy in zip(kinds, *measured, strict=True):
                shown = np.unique(np.linspace(0, depth - 1, 100).astype(int))
                row = {"depth": depth, "kind": kind, "layers": (shown + 1).tolist(), "norms": norms[shown].tolist()}
                found[depth, *kind] = row | {"test_accuracy": None if np.isnan(accuracy) else float(accuracy)}
                log.write(json.dumps(found[depth, *kind]) + "\n")
            log.flush()
    return found


def growth(norms: Sequence[float]) -> float:
    """log10(‖x̄_1‖ / ‖x̄_L‖) in float32: -inf where the gradient has vanished, inf where it has exploded."""
    with np.errstate(all="ignore"):
        return float(np.nan_to_num(np.log10(np.divide(norms[0], norms[-1])), nan=np.inf, posinf=np.inf, neginf=-np.inf))
