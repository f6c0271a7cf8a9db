"""Activations, as layers, from `jax.nn`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fbp.nn.layer import Layer, stateless


def sigmoid() -> Layer:
    """y = 1 / (1 + e^-x)."""
    return stateless("sigmoid", jax.nn.sigmoid)


def tanh() -> Layer:
    """y = tanh x."""
    return stateless("tanh", jnp.tanh)


def relu() -> Layer:
    """y = max(x, 0), with slope 0 at 0."""
    return stateless("relu", jax.nn.relu)


def leaky_relu(negative_slope: float = 0.01) -> Layer:
    """y = x for x ≥ 0, else negative_slope · x."""
    return stateless("leaky_relu", lambda x: jax.nn.leaky_relu(x, negative_slope))


def elu(alpha: float = 1.0) -> Layer:
    """y = x for x > 0, else α (e^x - 1) (Clevert et al. 2016, eq. 15)."""
    return stateless("elu", lambda x: jax.nn.elu(x, alpha))


def selu() -> Layer:
    """y = λ elu(x, α) with the fixed λ, α that keep mean 0 and variance 1 (Klambauer et al. 2017, eq. 2)."""
    return stateless("selu", jax.nn.selu)


def silu() -> Layer:
    """y = x sigmoid(x)."""
    return stateless("silu", jax.nn.silu)


def gelu(approximate: bool = True) -> Layer:
    """y = x Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016), by default by its tanh approximation."""
    return stateless("gelu", lambda x: jax.nn.gelu(x, approximate))


def flatten() -> Layer:
    """[batch, ...] -> [batch, features]."""
    return stateless("flatten", lambda x: x.reshape(x.shape[0], -1))


def dropout(rate: float) -> Layer:
    """y = x m / (1 - rate), m = 0 with probability `rate`, else 1 (Srivastava et al. 2014); y = x when not training.

    Raises ValueError if `rate` is not in [0, 1], or if it is applied with train=True without an `rng`.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"dropout drops a fraction of its input: rate must be in [0, 1], but is {rate}.")

    def apply(params, state, x, *, train=False, rng=None):
        if not train or rate == 0:
            return x, state
        if rng is None:
            raise ValueError("dropout needs random numbers when train=True: pass rng=jax.random.key(...) to apply.")
        if rate == 1:
            return jnp.zeros_like(x), state
        keep = jax.random.bernoulli(rng, 1 - rate, x.shape)
        return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x)), state

    return Layer("dropout", lambda rng, x: ({}, {}), apply)
