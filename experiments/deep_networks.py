"""Deep networks of equal layers, of every kind that differs in activation, initialization, normalization and residual."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax.nn import initializers

from fbp import nn, ops


def batch_statistics() -> nn.Layer:
    """Batch norm by the statistics of the batch at hand, in testing too: it has no state, so it can be stacked."""
    norm = nn.batch_norm()

    def apply(params, state, x, *, train=False, rng=None):
        return ops.batch_norm(x, **params)[0], state

    return nn.Layer("batch_norm", lambda rng, x: (norm.init(rng, x)[0], {}), apply)


ACTIVATIONS = {"sigmoid": nn.sigmoid, "tanh": nn.tanh, "relu": nn.relu, "selu": nn.selu, "gelu": nn.gelu}
INITIALIZATIONS = {
    "naive": initializers.variance_scaling(1 / 3, "fan_in", "uniform"),  # U[-1/√n, 1/√n] (Glorot & Bengio 2010, eq. 1)
    "Glorot": initializers.glorot_uniform(),  # the same, eq. 16
    "He": initializers.he_normal(),  # He et al. 2015, eq. 10
    "orthogonal": initializers.orthogonal(),  # Saxe et al. 2014
}
NORMS: dict[str, Callable[[], nn.Layer]] = {"batch": batch_statistics, "layer": nn.layer_norm, "RMS": nn.rms_norm}
NORMALIZATIONS = "none", "weight", *NORMS
RESIDUALS = "none", "plain", "ReZero", "pre-norm", "post-norm"


class Kind(NamedTuple):
    """What the layers of a network are."""

    activation: str
    initialization: str
    normalization: str = "none"
    residual: str = "none"

    def __str__(self):
        names = self.activation, self.initialization, self.normalization, self.residual
        return " ".join(name for name in names if name != "none")


def kinds(activations: Sequence[str], normalizations: Sequence[str]) -> list[Kind]:
    """All with one of these. (Without a norm of activations there is no place to put it before or after.)"""
    every = map(Kind._make, itertools.product(activations, INITIALIZATIONS, normalizations, RESIDUALS))
    return [kind for kind in every if kind.normalization in NORMS or kind.residual not in ("pre-norm", "post-norm")]


def block(kind: Kind, width: int) -> nn.Layer:
    """One layer, x ← φ(N(W x)), with N a normalization; or, with f = φ N W, one of the residual layers

    plain      x ← x + f(x)                      He et al. 2016
    ReZero     x ← x + α f(x), α = 0 at first    Bachlechner et al. 2020
    pre-norm   x ← x + φ(W N(x))                 Xiong et al. 2020
    post-norm  x ← N(x + φ(W x))
    """
    linear = nn.dense(width, kernel_init=INITIALIZATIONS[kind.initialization])
    if kind.normalization == "weight":
        linear = nn.weight_norm(linear)
    norm = [NORMS[kind.normalization]()] if kind.normalization in NORMS else []
    activation = ACTIVATIONS[kind.activation]()
    match kind.residual:
        case "none":
            return nn.sequential(linear, *norm, activation)
        case "plain":
            return nn.residual(nn.sequential(linear, *norm, activation))
        case "ReZero":
            return nn.residual(nn.sequential(linear, *norm, activation, gate()))
        case "pre-norm":
            return nn.residual(nn.sequential(*norm, linear, activation))
        case _:
            return nn.sequential(nn.residual(nn.sequential(linear, activation)), *norm)


def gate() -> nn.Layer:
    """y = α x, with one α that is learned and is 0 at first."""

    def apply(params, state, x, *, train=False, rng=None):
        return params["scale"] * x, state

    return nn.Layer("gate", lambda rng, x: ({"scale": jnp.zeros(())}, {}), apply)


def network(layer: nn.Layer, width: int, depth: int, keep_every: int = 1) -> nn.Layer:
    """`depth` such layers between one that reads the pixels and one that tells ten classes apart.

    They are a loop (`nn.stack`), which compiles as fast for 10,000 layers as for two; its backward pass computes again what
    is between the inputs of every k-th layer, which alone are kept."""
    return nn.sequential(nn.flatten(), nn.dense(width), nn.stack(layer, depth, keep_every), nn.dense(10))


def cross_entropy(net: nn.Layer):
    """The loss of a classifier, as `make_train_step` wants it."""

    def loss_fn(params, model_state, batch, rng):
        logits, model_state = net.apply(params, model_state, batch["x"], train=True, rng=rng)
        loss = jnp.mean(nn.softmax_cross_entropy_with_integer_labels(logits, batch["y"]))
        return loss, (model_state, {"train_accuracy": jnp.mean(jnp.argmax(logits, -1) == batch["y"])})

    return loss_fn
