"""Attention: each position reads from the others what its query matches (Vaswani et al. 2017)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from fbp import ops
from fbp.nn.activations import dropout
from fbp.nn.layer import Layer, promote


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    is_causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
) -> jax.Array:
    """softmax(Q Kᵀ / sqrt(d) + bias) V (eq. 1), where the mask holds; as `flax.linen.dot_product_attention`.

    query: [batch..., queries, heads, d], key: [batch..., keys, heads, d], value: [batch..., keys, heads, v],
    bias and mask: broadcastable to [batch..., heads, queries, keys]; result: [batch..., queries, heads, v]. is_causal: no
    query sees a key after it. dropout_rate: of the weights.

    With one batch axis it is `fbp.ops.dot_product_attention`, whose backward pass keeps no matrix of weights.
    """
    drops = dropout_rate > 0
    is_flat = query.ndim == key.ndim == value.ndim == 4 and query.shape[2] == key.shape[2]
    if is_flat and (not drops or (dropout_rate < 1 and dropout_rng is not None)):
        four = lambda x: x.reshape((1,) * (4 - x.ndim) + x.shape)
        bias = None if bias is None else four(bias)
        mask = None if mask is None else four(mask).astype(bool)
        options: Any = {"is_causal": is_causal, "dropout_rate": dropout_rate, "dropout_rng": dropout_rng}
        return ops.dot_product_attention(query, key, value, bias, mask, **options)
    weights = attention_weights(query, key, bias, mask, is_causal)
    weights, _ = dropout(dropout_rate).apply({}, {}, weights, train=drops, rng=dropout_rng)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value)


def attention_weights(query, key, bias=None, mask=None, is_causal=False) -> jax.Array:
    """softmax(Q Kᵀ / sqrt(d) + bias): [batch..., heads, queries, keys]."""
    query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    if is_causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores).astype(query.dtype)


def make_causal_mask(x: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Which keys a query may see: those not after it. x: [batch..., time], mask: [batch..., 1, time, time].

    >>> make_causal_mask(jnp.ones((3,)), bool).astype(int).tolist()
    [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]
    """
    places = jnp.broadcast_to(jnp.arange(x.shape[-1]), x.shape)
    return (places[..., None, :, None] >= places[..., None, None, :]).astype(dtype)


def multi_head_dot_product_attention(
    num_heads: int,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    qkv_features: int | None = None,
    out_features: int | None = None,
    dropout_rate: float = 0.0,
    kernel_init: initializers.Initializer = initializers.lecun_normal(),
    bias_init: initializers.Initializer = initializers.zeros,
    use_bias: bool = True,
    is_causal: bool = False,
) -> Layer:
    """Attention in `num_heads` subspaces at once (eq. 4); as `flax.linen.MultiHeadDotProductAttention`.

    apply(params, state, inputs_q, inputs_k=inputs_q, inputs_v=inputs_k, mask=None): [batch..., time, features].
    Parameters query, key, value: kernel [features, heads, d], bias [heads, d]; out: kernel [heads, d, features], bias.
    Dropout is on the attention weights. is_causal: no query sees a key after it; otherwise than with a mask that says so,
    what is not seen is not computed.

    Raises ValueError if the heads do not divide `qkv_features`.
    """

    def inputs(inputs_q, inputs_k=None, inputs_v=None):
        inputs_k = inputs_q if inputs_k is None else inputs_k
        return inputs_q, inputs_k, inputs_k if inputs_v is None else inputs_v

    def init(rng, *xs):
        named = dict(zip(("query", "key", "value"), inputs(*xs), strict=True))
        width = qkv_features or named["query"].shape[-1]
        if width % num_heads:
            raise ValueError(f"multi_head_dot_product_attention: {num_heads} heads do not divide qkv_features={width}.")
        heads = (num_heads, width // num_heads)
        out = out_features or named["query"].shape[-1]

        def projection(rng, fan_in, fan_out, fan_in_shape, fan_out_shape):
            kernel_rng, bias_rng = jax.random.split(rng)
            kernel = kernel_init(kernel_rng, (fan_in, fan_out), param_dtype).reshape(*fan_in_shape, *fan_out_shape)
            return {"kernel": kernel} | ({"bias": bias_init(bias_rng, fan_out_shape, param_dtype)} if use_bias else {})

        *rngs, out_rng = jax.random.split(rng, 4)
        params = {
            name: projection(r, x.shape[-1], width, (x.shape[-1],), heads)
            for (name, x), r in zip(named.items(), rngs, strict=True)
        }
        params["out"] = projection(out_rng, math.prod(heads), out, heads, (out,))
        return params, {}

    def apply(params, state, *xs, mask=None, train=False, rng=None):
        def project(name, x, spec):
            x, p = promote(x, params[name], dtype)
            y = jnp.einsum(spec, x, p["kernel"])
            return y + p["bias"] if use_bias else y

        named = zip(("query", "key", "value"), inputs(*xs), strict=True)
        query, key, value = (project(name, x, "...f,fhd->...hd") for name, x in named)
        y = dot_product_attention(query, key, value, None, mask, is_causal, dropout_rate if train else 0.0, rng)
        return project("out", y, "...hd,hdf->...f"), state

    return Layer("multi_head_dot_product_attention", init, apply)
