"""The last layer and the loss as one, so that no matrix of logits is ever made (Wijmans et al. 2025; Hsu et al. 2024).

    S = X W + b,   ℓ = logsumexp S,   L = 1/N Σ_n (ℓ_n - (1 - ε) S[n, y_n] - ε mean_v S[n, v] + ζ ℓ_n²)

L is a scalar, so its gradient is known up to the factor L̄ when the logits are: they are made once, a chunk of examples at
a time, and leave behind

    S̄[n, v] = L̄/N ((1 + 2 ζ ℓ_n) exp(S[n, v] - ℓ_n) - (1 - ε) [v = y_n] - ε / V),   X̄ = S̄ Wᵀ,   W̄ = Xᵀ S̄,   b̄ = Σ_n S̄
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fbp.core import op
from fbp.ops.common import at_least_float32, over_chunks, staged
from fbp.rules import choices


def linear_cross_entropy(
    x: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    bias: jax.Array | None = None,
    where: jax.Array | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_size: int | None = None,
) -> jax.Array:
    """Mean cross-entropy of the logits x @ kernel + bias, without a matrix of logits in memory.

    x: [..., features], kernel: [features, classes], labels: integers [...], bias: [classes]; where: booleans [...], which
    examples count; result: a scalar, in float32 at least.
    label_smoothing: ε, what of the target is spread over all classes (Szegedy et al. 2016, section 7). z_loss: ζ, the weight
    of ℓ², which keeps the logits from drifting (Chowdhery et al. 2022, section 5). chunk_size: examples whose logits are in
    memory at a time, by default few enough for about 16 MiB.

    The same as the mean of `optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias, labels)`. Its forward pass
    computes the gradient, too, where one is wanted: three products in all, as many as with a matrix of logits.

    Raises ValueError for shapes that do not go together.

    >>> x, w = jnp.ones((4, 3)), jnp.arange(15.0).reshape(3, 5)
    >>> round(float(linear_cross_entropy(x, w, jnp.array([0, 1, 4, 4]))), 4)
    5.3011
    """
    if x.ndim == 0 or kernel.ndim != 2 or x.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"linear_cross_entropy takes x [..., features] and kernel [features, classes], but got {x.shape}, {kernel.shape}."
        )
    if labels.shape != x.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"linear_cross_entropy: labels must be integers {x.shape[:-1]}, but are {labels.dtype} {labels.shape}."
        )
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(f"linear_cross_entropy: bias must be {kernel.shape[1:]}, but is {bias.shape}.")
    if where is not None and (where.shape != labels.shape or where.dtype != bool):
        raise ValueError(
            f"linear_cross_entropy: where must be booleans {labels.shape}, but is {where.dtype} {where.shape}."
        )
    features = x.shape[-1]
    where = jnp.ones(labels.shape, bool) if where is None else where
    options = Options(label_smoothing, z_loss, chunk_size or choices.logits(kernel.shape[1]))
    extras = () if bias is None else (bias,)
    return _linear_cross_entropy(
        x.reshape(-1, features), kernel, labels.ravel(), where.ravel(), *extras, options=options
    )


class Options(NamedTuple):
    label_smoothing: float
    z_loss: float
    chunk_size: int


def _losses(x, kernel, labels, bias, options):
    """L of each example of a chunk, its logits and ℓ."""
    logits = jnp.matmul(x, kernel, preferred_element_type=at_least_float32(x.dtype))
    if bias is not None:
        logits += bias.astype(logits.dtype)
    largest = lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
    logsumexp = jnp.log(jnp.sum(jnp.exp(logits - largest), -1)) + largest[:, 0]
    target = jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]
    losses = logsumexp - (1 - options.label_smoothing) * target
    if options.label_smoothing:
        losses -= options.label_smoothing * jnp.mean(logits, -1)
    if options.z_loss:
        losses += options.z_loss * logsumexp**2
    return losses, logits, logsumexp


def _logits_bar(labels, where, logits, logsumexp, options):
    """S̄ of a chunk, but for L̄ / N."""
    scale = 1 + 2 * options.z_loss * logsumexp if options.z_loss else jnp.ones_like(logsumexp)
    classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    is_target = classes[None] == labels[:, None].astype(jnp.int32)
    targets = jnp.where(is_target, 1 - options.label_smoothing, 0).astype(logits.dtype)
    if options.label_smoothing:
        targets += options.label_smoothing / logits.shape[-1]
    return where[:, None].astype(logits.dtype) * (scale[:, None] * jnp.exp(logits - logsumexp[:, None]) - targets)


def _forward(site, x, kernel, labels, where, *extras, options):
    bias = extras[0] if extras else None
    x_needed, kernel_needed, _, _, *rest = site.needs
    dtype = at_least_float32(x.dtype)

    def step(carry, inputs):
        x, labels, where = inputs
        total, kernel_bar, bias_bar = carry
        losses, logits, logsumexp = _losses(x, kernel, labels, bias, options)
        logits_bar = _logits_bar(labels, where, logits, logsumexp, options)
        narrow = logits_bar.astype(x.dtype)
        if kernel_needed:  # a product without a transposed factor, which XLA would otherwise put back
            kernel_bar += jnp.matmul(lax.optimization_barrier(x.T), narrow, preferred_element_type=dtype)
        if bias_bar is not None:
            bias_bar += jnp.sum(logits_bar, 0)
        x_bar = narrow @ kernel.T if x_needed else None
        return (total + jnp.sum(losses, where=where), kernel_bar, bias_bar), x_bar

    zero = lambda shape: jnp.zeros(shape, dtype)
    carry = zero(()), zero(kernel.shape) if kernel_needed else None, zero(kernel.shape[1:]) if any(rest) else None
    (total, *bars), x_bar = over_chunks(step, carry, [x, labels, where], options.chunk_size)
    count = jnp.sum(where, dtype=dtype)
    return [total / count], (x_bar, *bars, count)


def _backward(site, residuals, g, *, options):
    x_bar, kernel_bar, bias_bar, count = residuals
    bars = [x_bar, kernel_bar, None, None, *([bias_bar] if len(site.avals) > 4 else [])]
    return [
        None if bar is None else (g / count * bar.astype(g.dtype)).astype(aval.dtype)
        for bar, aval in zip(bars, site.avals, strict=True)
    ]


@functools.partial(op, rule=staged(_forward, _backward))
def _linear_cross_entropy(x, kernel, labels, where, *extras, options):
    bias = extras[0] if extras else None
    dtype = at_least_float32(x.dtype)

    def step(total, inputs):
        x, labels, where = inputs
        return total + jnp.sum(_losses(x, kernel, labels, bias, options)[0], where=where), None

    total, _ = over_chunks(step, jnp.zeros((), dtype), [x, labels, where], options.chunk_size)
    return total / jnp.sum(where, dtype=dtype)
