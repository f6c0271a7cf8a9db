"""The last layer and the loss as one, so that no matrix of logits is ever made (Wijmans et al. 2025; Hsu et al. 2024).

    S = X W + b,   ℓ = logsumexp S,   L = 1/N Σ_n (ℓ_n - (1 - ε) S[n, y_n] - ε mean_v S[n, v] + ζ ℓ_n²)

The logits are made a chunk of classes at a time, and made again on the way back, where they leave behind

    S̄[n, v] = L̄/N ((1 + 2 ζ ℓ_n) exp(S[n, v] - ℓ_n) - (1 - ε) [v = y_n] - ε / V),   X̄ = S̄ Wᵀ,   W̄ = Xᵀ S̄,   b̄ = Σ_n S̄

Each chunk has columns of W̄ of its own, so that of these nothing is added up: they are written where they are to be.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fbp.core import op
from fbp.ops.common import at_least_float32, staged
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
    of ℓ², which keeps the logits from drifting (Chowdhery et al. 2022, section 5). chunk_size: classes whose logits are in
    memory at a time, by default few enough for about 4 MiB.

    The same as the mean of `optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias, labels)`. With its gradient it
    takes four products, where a matrix of logits takes three but has to be written and read.

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
    options = Options(label_smoothing, z_loss, chunk_size or choices.classes(labels.size))
    extras = () if bias is None else (bias,)
    return _linear_cross_entropy(
        x.reshape(-1, features), kernel, labels.ravel(), where.ravel(), *extras, options=options
    )


class Options(NamedTuple):
    label_smoothing: float
    z_loss: float
    chunk_size: int


def _over_classes(step, carry, classes, chunk_size):
    """`step(carry, start, size) -> carry` for each chunk of classes; the last one may be smaller."""
    whole = classes // chunk_size * chunk_size
    if whole:
        chunk = lambda i, carry: step(carry, i * chunk_size, chunk_size)
        carry = lax.fori_loop(0, whole // chunk_size, chunk, carry)
    return step(carry, whole, classes - whole) if whole < classes else carry


def _logits(x, kernel, bias, start, size):
    """Those of some classes, and the columns of the kernel that they are made with."""
    columns = lax.dynamic_slice_in_dim(kernel, start, size, 1)
    logits = jnp.matmul(x, columns, preferred_element_type=at_least_float32(x.dtype))
    if bias is not None:
        logits += lax.dynamic_slice_in_dim(bias, start, size).astype(logits.dtype)
    return logits, columns


def _losses(x, kernel, labels, bias, options):
    """L and ℓ of each example. The sum of the exponentials is known up to the largest logit so far."""
    classes, dtype = kernel.shape[1], at_least_float32(x.dtype)

    def step(carry, start, size):
        largest, total, target, sum_of_logits = carry
        logits, _ = _logits(x, kernel, bias, start, size)
        new = jnp.maximum(largest, lax.stop_gradient(jnp.max(logits, -1)))
        shift = jnp.where(new == -jnp.inf, 0, new)  # of classes that are all ruled out
        total = total * jnp.exp(largest - shift) + jnp.sum(jnp.exp(logits - shift[:, None]), -1)
        place = labels - start
        is_here = (place >= 0) & (place < size)
        here = jnp.take_along_axis(logits, jnp.clip(place, 0, size - 1)[:, None], -1)[:, 0]
        if options.label_smoothing:
            sum_of_logits += jnp.sum(logits, -1)
        return new, total, jnp.where(is_here, here, target), sum_of_logits

    zero = jnp.zeros(len(x), dtype)
    carry = zero - jnp.inf, zero, zero * jnp.nan, zero  # there is no logit of a label that is no class
    largest, total, target, sum_of_logits = _over_classes(step, carry, classes, options.chunk_size)
    logsumexp = largest + jnp.log(total)
    losses = logsumexp - (1 - options.label_smoothing) * target
    if options.label_smoothing:
        losses -= options.label_smoothing / classes * sum_of_logits
    if options.z_loss:
        losses += options.z_loss * logsumexp**2
    return losses, logsumexp


def _forward(site, x, kernel, labels, where, *extras, options):
    bias = extras[0] if extras else None
    labels = jnp.where(labels < 0, labels + kernel.shape[1], labels)  # as where one indexes with them
    losses, logsumexp = _losses(x, kernel, labels, bias, options)
    mean = jnp.sum(losses, where=where) / jnp.sum(where, dtype=losses.dtype)
    return [mean], (x, kernel, labels, where, extras, logsumexp)


def _backward(site, residuals, g, *, options):
    x, kernel, labels, where, extras, logsumexp = residuals
    bias = extras[0] if extras else None
    x_needed, kernel_needed, _, _, *bias_needed = site.needs
    classes, dtype = kernel.shape[1], logsumexp.dtype
    weights = where.astype(dtype) * (g / jnp.sum(where, dtype=dtype))
    scale = 1 + 2 * options.z_loss * logsumexp if options.z_loss else jnp.ones_like(logsumexp)
    transposed = x.T

    def step(bars, start, size):
        x_bar, kernel_bar, *bias_bars = bars
        logits, columns = _logits(x, kernel, bias, start, size)
        is_target = (labels - start)[:, None] == jnp.arange(size)[None]
        targets = jnp.where(is_target, 1 - options.label_smoothing, 0).astype(dtype)
        if options.label_smoothing:
            targets += options.label_smoothing / classes
        logits_bar = weights[:, None] * (scale[:, None] * jnp.exp(logits - logsumexp[:, None]) - targets)
        narrow = logits_bar.astype(x.dtype)
        if x_needed:
            x_bar += jnp.matmul(narrow, columns.T, preferred_element_type=dtype)
        if kernel_needed:
            part = jnp.matmul(transposed, narrow, preferred_element_type=dtype).astype(kernel.dtype)
            kernel_bar = lax.dynamic_update_slice_in_dim(kernel_bar, part, start, 1)
        if any(bias_needed):
            part = jnp.sum(logits_bar, 0).astype(bias_bars[0].dtype)
            bias_bars = [lax.dynamic_update_slice_in_dim(bias_bars[0], part, start, 0)]
        return x_bar, kernel_bar, *bias_bars

    bars = (
        jnp.zeros(x.shape, dtype) if x_needed else None,
        jnp.zeros_like(kernel) if kernel_needed else None,
        *(jnp.zeros_like(bias) if needed else None for bias, needed in zip(extras, bias_needed, strict=True)),
    )
    x_bar, kernel_bar, *bias_bars = _over_classes(step, bars, classes, options.chunk_size)
    return [None if x_bar is None else x_bar.astype(x.dtype), kernel_bar, None, None, *bias_bars]


@functools.partial(op, rule=staged(_forward, _backward))
def _linear_cross_entropy(x, kernel, labels, where, *extras, options):
    (loss,), _ = _forward(None, x, kernel, labels, where, *extras, options=options)
    return loss
