"""Single operations, as JAX and Flax have them, under jax.vjp and fbp.vjp: what one rule is worth, forward and back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
from jax import lax

import fbp
from benchmarks.layers import normal
from benchmarks.measure import Program, Variant

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


def of(fun: Callable[..., jax.Array], x: Any, *others: Any) -> Program:
    """y = fun(x, *others), and the cotangent of x for that of y under a loss of ½ Σ (y - target)², which is known, as that of
    any loss, when y is."""
    target = normal(*jax.eval_shape(fun, x, *others).shape, seed=1)

    def step(vjp: Callable, x, target, *others):
        y, pullback = vjp(lambda x: fun(x, *others), x)
        return y, pullback(y - target)[0]

    forward = lambda x, target, *others: fun(x, *others)
    steps = {"jax.grad": functools.partial(step, jax.vjp), "fbp.grad": functools.partial(step, fbp.vjp)}
    return Program(forward, {name: Variant(step, x, (target, *others)) for name, step in steps.items()})


def convolution(
    name: str, x: tuple[int, ...], kernel: tuple[int, ...], **options: Any
) -> dict[str, Callable[[], Program]]:
    """A convolution with respect to its input and with respect to its kernel."""
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": CHANNELS_LAST} | options
    apply = functools.partial(lax.conv_general_dilated, **options)
    return {
        f"{name}-input": lambda: of(apply, normal(*x), normal(*kernel)),
        f"{name}-kernel": lambda: of(lambda w, x: apply(x, w), normal(*kernel), normal(*x)),
    }


def linear_recurrence(x: jax.Array) -> jax.Array:
    """h_t = sigmoid(x_t) h_{t-1} + x_t, in logarithmic depth."""
    after = lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1])
    return lax.associative_scan(after, (jax.nn.sigmoid(x), x), axis=1)[1]


def causal_attention(qkv: jax.Array) -> jax.Array:
    """Attention as one writes it out, with a mask that all heads share. qkv: [3, batch, time, heads, features]."""
    query, key, value = qkv
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(mask, scores, -1e9)), value)


def hidden_markov(transitions: jax.Array, emissions: jax.Array) -> jax.Array:
    """log p(y) by the forward algorithm: α_t[j] = logsumexp_i (α_{t-1}[i] + A[i, j]) + log p(y_t | j), A: [states, states];
    emissions: [time, batch, states]."""
    a = jax.nn.log_softmax(transitions)
    step = lambda alpha, emission: (jax.nn.logsumexp(alpha[:, :, None] + a, 1) + emission, None)
    return jax.nn.logsumexp(lax.scan(step, jnp.zeros(emissions.shape[1:]), emissions)[0], -1)


CASES: dict[str, Callable[[], Program]] = {
    "max-pool-2x2": lambda: of(lambda x: linen.max_pool(x, (2, 2), (2, 2)), normal(32, 32, 32, 64)),
    "max-pool-3x3": lambda: of(lambda x: linen.max_pool(x, (3, 3), (2, 2), "SAME"), normal(32, 32, 32, 64)),
    "avg-pool-2x2": lambda: of(lambda x: linen.avg_pool(x, (2, 2), (2, 2)), normal(32, 32, 32, 64)),
    **convolution("depthwise", (32, 32, 32, 64), (3, 3, 1, 64), feature_group_count=64),
    **convolution("grouped", (16, 16, 16, 64), (3, 3, 4, 64), feature_group_count=16),
    **convolution("1x1", (32, 32, 32, 64), (1, 1, 64, 64)),
    **convolution("strided", (32, 32, 32, 32), (3, 3, 32, 64), window_strides=(2, 2)),
    **convolution("transposed", (8, 16, 16, 64), (3, 3, 64, 32), padding=[(1, 2), (1, 2)], lhs_dilation=(2, 2)),
    **convolution("plain", (32, 32, 32, 32), (3, 3, 32, 32)),
    "softmax": lambda: of(jax.nn.softmax, normal(16, 8, 128, 128)),
    "standardize": lambda: of(lambda x: jax.nn.standardize(x, -1), normal(16, 256, 512)),
    "gelu": lambda: of(jax.nn.gelu, normal(16, 256, 1024)),
    "cumsum": lambda: of(lambda x: jnp.cumsum(x, 1), normal(16, 1024, 128)),
    "cummax": lambda: of(lambda x: lax.cummax(x, 1), normal(16, 256, 256)),
    "cumprod": lambda: of(lambda x: lax.cumprod(1 + x / 100, 1), normal(16, 256, 256)),
    "cumlogsumexp": lambda: of(lambda x: lax.cumlogsumexp(x, 1), normal(16, 256, 256)),
    "associative-scan": lambda: of(linear_recurrence, normal(16, 256, 256)),
    "rfft": lambda: of(lambda x: jnp.abs(jnp.fft.rfft(x)), normal(16, 256, 256)),
    "logsumexp": lambda: of(lambda x: jax.nn.logsumexp(x, -1), normal(1024, 8192)),
    "causal-attention": lambda: of(causal_attention, normal(3, 2, 512, 4, 32)),
    "hidden-markov": lambda: of(hidden_markov, normal(32, 32), normal(100, 16, 32)),
    "sort": lambda: of(lambda x: jnp.sort(x, -1), normal(256, 1024)),
}
