"""Losses, one value per example, from optax where optax has them; take `jnp.mean` of them to train.

The cross-entropies take logits, and labels whose range is checked where it can be (not inside `jit`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from fbp.nn.linear import check_range

huber_loss = optax.huber_loss
sigmoid_binary_cross_entropy = optax.sigmoid_binary_cross_entropy
softmax_cross_entropy = optax.softmax_cross_entropy
squared_error = optax.squared_error


def mean_squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Σ (p - t)² / n over all elements: a scalar.

    Raises ValueError if the shapes differ, which broadcasting would hide.

    >>> float(mean_squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    2.0
    """
    if jnp.shape(predictions) != jnp.shape(targets):
        raise ValueError(
            f"mean_squared_error compares arrays of one shape, but predictions are {jnp.shape(predictions)} and targets "
            f"{jnp.shape(targets)}. Reshape one of them."
        )
    return jnp.mean(optax.squared_error(predictions, targets))


def softmax_cross_entropy_with_integer_labels(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label]. logits: [..., classes], labels: integers [...], result: [...].

    Raises ValueError if labels that are known (not traced) are not in [0, classes).

    >>> softmax_cross_entropy_with_integer_labels(jnp.zeros((1, 4)), jnp.array([2])).round(3).tolist()
    [1.3860000371932983]
    """
    check_range("softmax_cross_entropy_with_integer_labels: the labels", labels, logits.shape[-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
