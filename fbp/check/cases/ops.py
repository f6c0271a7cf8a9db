"""Cases for the operations of `fbp.ops`, against `jax.vjp` of the plain code inside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fbp import ops
from fbp.check.case import Case, fixed, integers, normal
from fbp.ops import recurrent

attend = functools.partial(ops.dot_product_attention, block_size=3)
QUERY, KEY = (2, 7, 4, 3), (2, 7, 2, 3)
SEEN = np.random.default_rng(0).random((2, 1, 7, 7)) < 0.5
LABELS = integers(0, 7, 2, 5)
loss = functools.partial(ops.linear_cross_entropy, chunk_size=4)


WEIGHTS = normal(4, 3, 3)


def stacked(w, b, x, **options):
    """Blocks that share what they close over."""
    return ops.stack(lambda w, x: x + jnp.tanh(x @ w + b), w, x, **options)


def reversed_from_outputs(w, b, x):
    half = lambda w, x: jnp.tanh(x @ w + b)
    return ops.reversible(half, lambda w, x: half(w[::-1], x) * w[0], (w, w / 2), (x, 2 * x))


def of_bias(q, k, v, bias):
    return attend(q, k, v, bias, jnp.asarray(SEEN))


def dropped(q, k, v):
    return attend(q, k, v, dropout_rate=0.3, dropout_rng=jax.random.key(0))


IMAGE, FEATURES = normal(2, 5, 3, 4), normal(4)
grouped = lambda x, *affine: ops.group_norm(x, 2, *affine)
instances = lambda x, *affine: ops.group_norm(x, 4, *affine)
STEPS = normal(4, 2, 3)


# What a CPU does not choose.
of_elman = functools.partial(recurrent.recurrent, options=recurrent.Options("elman", True, 1, chunk_size=2))


def of_lstm(x, kernel, recurrent_kernel, bias, c, h):
    return ops.lstm(x, kernel, recurrent_kernel, bias, (c, h))


CASES = [
    Case("attention", attend, (normal(*QUERY), normal(2, 5, 4, 3), normal(2, 5, 4, 6)), ulps=32, low=False),
    Case("attention/at once", ops.dot_product_attention, (normal(*QUERY), normal(*KEY), normal(*KEY)), ulps=32, low=False),
    Case("attention/causal", functools.partial(attend, is_causal=True), (normal(*QUERY), normal(*KEY), normal(*KEY)), ulps=32, low=False),
    Case("attention/masked", of_bias, (normal(*QUERY), normal(*KEY), normal(*KEY), normal(1, 4, 7, 7)), ulps=32, low=False),
    Case("attention/dropout", dropped, (normal(*QUERY), normal(*KEY), normal(*KEY)), ulps=32, low=False, mapped=False),
    Case("linear_cross_entropy", loss, (normal(2, 5, 4), normal(4, 7), LABELS), ulps=32, low=False),
    Case("linear_cross_entropy/all", functools.partial(loss, label_smoothing=0.1, z_loss=0.01), (normal(2, 5, 4), normal(4, 7), LABELS, normal(7), fixed(SEEN[:, 0, :5, 0])), ulps=32, low=False),
    Case("layer_norm", ops.layer_norm, (normal(3, 5, 4), FEATURES, FEATURES), ulps=32, low=False),
    Case("layer_norm/plain", ops.layer_norm, (normal(5, 4),), ulps=32, low=False),
    Case("rms_norm", ops.rms_norm, (normal(3, 5, 4), FEATURES), ulps=32, low=False),
    Case("batch_norm", ops.batch_norm, (IMAGE, FEATURES, FEATURES), ulps=32, low=False),
    Case("group_norm", grouped, (IMAGE, FEATURES, FEATURES), ulps=32, low=False),
    Case("group_norm/instances", instances, (IMAGE, FEATURES, FEATURES), ulps=32, low=False),
    Case("elman", functools.partial(ops.elman, unroll=2), (STEPS, normal(3, 4), normal(4, 4), FEATURES, normal(2, 4)), ulps=32, low=False),
    Case("elman/one", of_elman, (STEPS, normal(3, 4), normal(4, 4), FEATURES, normal(2, 4)), ulps=32, low=False),
    Case("lstm", of_lstm, (STEPS, normal(3, 16), normal(4, 16), normal(16), normal(2, 4), normal(2, 4)), ulps=32, low=False),
    Case("gru", functools.partial(ops.gru, reverse=True), (STEPS, normal(3, 12), normal(4, 12), normal(12), FEATURES, normal(2, 4)), ulps=32, low=False),
    Case("gru/plain", ops.gru, (STEPS, normal(3, 12), normal(4, 12)), ulps=32, low=False),
    Case("stack", stacked, (WEIGHTS, normal(3), normal(2, 3)), ulps=32, low=False),
    Case("stack/every second", functools.partial(stacked, keep_every=2), (WEIGHTS, normal(3), normal(2, 3)), ulps=32, low=False),
    Case("reversible", reversed_from_outputs, (WEIGHTS, normal(3), normal(2, 3)), ulps=64, low=False),
]  # fmt: skip
