"""Models of the next token: a transformer with fbp's layers, and the baselines that know no gradient.

All are compared in bits per byte of a text, -1/n Σ log2 p(next | before), which does not depend on how it is cut into tokens.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fbp import nn, ops


class Model(NamedTuple):
    """layer: tokens [batch, time] -> features [batch, time, features]; features @ `kernel(params)` are the next token's logits.

    start: (batch, length) -> an empty cache. step: (params, tokens [batch, time], place, cache) -> features, cache: the same
    for tokens that begin at a place, after those whose keys and values the cache holds.
    """

    layer: nn.Layer
    start: Callable[[int, int], Any]
    step: Callable[[Any, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def kernel(params: Any) -> jax.Array:
    """[features, tokens]: the last layer is the table of embeddings, once more (Press & Wolf 2017)."""
    return params["embed"]["embedding"].T


def transformer(vocabulary: int, features: int, depth: int, heads: int, rate: float = 0.0) -> Model:
    """A causal transformer: `depth` blocks x + attention(norm(x)), x + mlp(norm(x)) (Vaswani et al. 2017; Xiong et al. 2020).

    Places are told by rotation (`rotated`), norms are RMS norms, and linear layers have no bias. rate: of the dropout on
    what a block adds. The blocks are a loop, whose parameters have a first axis of length `depth`.
    """
    embed, norm, drop = nn.embed(vocabulary, features), nn.rms_norm(), nn.dropout(rate)
    dense = lambda n: nn.dense(n, use_bias=False)
    parts = {"norm_0": norm, "qkv": dense(3 * features), "out": dense(features), "norm_1": norm}
    parts |= {"up": dense(4 * features), "down": dense(features)}
    inputs = {"down": 4 * features}

    def init(rng, tokens):
        embed_rng, blocks_rng = jax.random.split(rng)
        params = {"embed": embed.init(embed_rng, tokens)[0]}

        def one(rng):
            shape = lambda name: jax.ShapeDtypeStruct((1, inputs.get(name, features)), jnp.float32)
            rngs = jax.random.split(rng, len(parts))
            return {name: part.init(r, shape(name))[0] for (name, part), r in zip(parts.items(), rngs, strict=True)}

        params["blocks"] = jax.vmap(one)(jax.random.split(blocks_rng, depth))
        return params | {"norm": norm.init(rng, jax.ShapeDtypeStruct((1, features), jnp.float32))[0]}, {}

    def block(params, x, place, cache, rngs, train):
        part = lambda name, x: parts[name].apply(params[name], {}, x)[0]
        dropped = lambda x, rng: drop.apply({}, {}, x, train=train, rng=rng)[0]
        with jax.named_scope("attention"):
            q, k, v = jnp.split(part("qkv", part("norm_0", x)).reshape(*x.shape[:2], 3 * heads, -1), 3, 2)
            places = place + jnp.arange(x.shape[1])
            q, k = rotated(q, places), rotated(k, places)
            if cache is None:
                y = ops.dot_product_attention(q, k, v, is_causal=True)
            else:
                cache = [
                    lax.dynamic_update_slice_in_dim(old, new, place, 1) for old, new in zip(cache, (k, v), strict=True)
                ]
                seen = jnp.arange(cache[0].shape[1]) <= places[:, None]
                y = ops.dot_product_attention(q, *cache, mask=seen[None, None])
            x = x + dropped(part("out", y.reshape(x.shape)), rngs[0])
        with jax.named_scope("mlp"):
            y = jax.nn.gelu(part("up", part("norm_1", x)))
            return x + dropped(part("down", y), rngs[1]), cache

    def run(params, tokens, place, cache, rng=None, train=False):
        x = embed.apply(params["embed"], {}, tokens)[0]
        x = x * jnp.asarray(features**0.5, x.dtype)
        rngs = None if rng is None else jax.random.split(rng, (depth, 2))

        def body(x, inputs):
            params, cache, rngs = inputs
            return block(params, x, place, cache, (None, None) if rngs is None else rngs, train)

        x, cache = lax.scan(body, x, (params["blocks"], cache, rngs))
        return norm.apply(params["norm"], {}, x)[0], cache

    def apply(params, state, tokens, *, train=False, rng=None):
        return run(params, tokens, 0, None, rng, train)[0], state

    def start(batch, length):
        shape = depth, batch, length, heads, features // heads
        return [jnp.zeros(shape), jnp.zeros(shape)]

    return Model(nn.Layer("transformer", init, apply), start, run)


def rotated(x: jax.Array, places: jax.Array) -> jax.Array:
    """Each pair (x_i, x_{i + d/2}) turned by the angle place · 10000^(-2 i / d), so that a product of two depends on how far
    their places are apart (Su et al. 2021, eq. 15). x: [batch, time, heads, d], places: [time]."""
    half = x.shape[-1] // 2
    angles = places[:, None].astype(jnp.float32) * 10_000.0 ** (-np.arange(half, dtype=np.float32) / half)
    cos, sin = (f(angles)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


# -------------------------------------------------------------------------------------------------------- sampling


def choose(rng: jax.Array, logits: jax.Array, temperature: float, top_k: int, top_p: float) -> jax.Array:
    """A token of each row of logits [batch, tokens], at a temperature; 0 is the likeliest.

    top_k: only from the k likeliest (0: all). top_p: only from the nucleus, the fewest of the likeliest whose
    probabilities at this temperature come to p (Holtzman et al. 2020)."""
    if temperature == 0:
        return jnp.argmax(logits, -1)
    order = jnp.argsort(-logits, -1)
    ordered = jnp.take_along_axis(logits, order, -1) / temperature
    probabilities = jax.nn.softmax(ordered)
    before = jnp.cumsum(probabilities, -1) - probabilities  # what the likelier ones come to: 0 for the likeliest
    kept = (before < top_p) & (jnp.arange(logits.shape[-1]) < (top_k or logits.shape[-1]))
    rank = jax.random.categorical(rng, jnp.where(kept, ordered, -jnp.inf))
    return jnp.take_along_axis(order, rank[:, None], -1)[:, 0]


def generate(model: Model, params, prompt: np.ndarray, count: int, context: int, rng: jax.Array, **how) -> np.ndarray:
    """`count` tokens after a prompt [time]. When a cache of `context` places is full, it begins again with the last half."""
    tokens = np.asarray(prompt)

    @jax.jit
    def fill(tokens, rng):
        """The tokens that fill the cache after these."""
        features, cache = model.step(params, tokens[None], jnp.int32(0), model.start(1, context))

        def one(carry, inputs):
            features, cache = carry
            place, rng = inputs
            token = choose(rng, features[:, -1] @ kernel(params), **how)
            return model.step(params, token[:, None], place, cache), token[0]

        places = jnp.arange(tokens.size, context)
        return lax.scan(one, (features[:, -1:], cache), (places, jax.random.split(rng, places.size)))[1]

    while len(tokens) < len(prompt) + count:
        rng, fill_rng = jax.random.split(rng)
        seen = tokens if len(tokens) < context else tokens[-(context // 2) :]
        tokens = np.concatenate([tokens, np.asarray(fill(seen, fill_rng))])
    return tokens[len(prompt) :][:count]


# ------------------------------------------------------------------------------------------------------- baselines


def xz_bits_per_byte(train: bytes, held_out: bytes) -> float:
    """What a text adds to a file of `xz -9` that holds the training text already. (All of it: the window is of 64 MiB.)"""
    size = lambda text: len(lzma.compress(text, preset=9))
    return 8 * (size(train + held_out) - size(train)) / len(held_out)


def ngram_bits_per_byte(train: bytes, held_out: bytes, order: int = 5) -> float:
    """By the counts of bytes after each context h of up to `order` bytes, each order backed by the one below (Witten & Bell
    1991, in its interpolated form):

        p(c | h) = (N(h c) + T(h) p(c | h')) / (N(h) + T(h)),   h' = h without its first byte,   p(c) below all = 1/256

    N counts occurrences, T(h) the different bytes that were seen after h."""
    if not 0 <= order <= 7:
        raise ValueError(f"order={order}: a context and its byte must fit into eight bytes, so it is 0 to 7.")
    p = np.full(len(held_out), 1 / 256)
    for length in range(order + 1):
        grams, counts = np.unique(_grams(train, length + 1), return_counts=True)
        contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
        totals, kinds = np.add.reduceat(counts, first), np.diff(first, append=len(grams))
        wanted = _grams(held_out, length + 1)
        n, total, kind = (
            np.where(table[at := np.minimum(np.searchsorted(table, key), len(table) - 1)] == key, values[at], 0)
            for table, key, values in (
                (grams, wanted, counts), (contexts, wanted >> np.uint64(8), totals), (contexts, wanted >> np.uint64(8), kinds)
            )
        )  # fmt: skip
        known = total > 0
        p = np.where(known, (n + kind * p) / np.maximum(total + kind, 1), p)
    return float(-np.mean(np.log2(p)))


def _grams(text: bytes, n: int) -> np.ndarray:
    """The n bytes up to each one, as a number; before the text is zeros."""
    padded = np.frombuffer(bytes(n - 1) + text, np.uint8).astype(np.uint64)
    size = len(text)
    return sum((padded[i : i + size] << np.uint64(8 * (n - 1 - i)) for i in range(n)), np.zeros(size, np.uint64))
