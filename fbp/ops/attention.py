"""Attention whose matrix of weights is never kept (Rabe & Staats 2021; Dao et al. 2022).

    S = scale Q Kᵀ + bias,   P = exp(S - ℓ),   ℓ = logsumexp S,   y = P V

Kept from the forward pass are y and ℓ, a number for each query. Going back, P is computed again, a block of queries at a
time (Dao et al. 2022, appendix B.2):

    D = Σ ȳ y,   V̄ = Pᵀ ȳ,   S̄ = P (ȳ Vᵀ - D),   Q̄ = scale S̄ K,   K̄ = scale S̄ᵀ Q,   bias̄ = S̄
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fbp.core import op, unbroadcast
from fbp.ops.common import at_least_float32, staged
from fbp.rules import choices


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    block_size: int | None = None,
    implementation: Literal["blocks", "cudnn"] | None = None,
) -> jax.Array:
    """softmax(scale Q Kᵀ + bias) V, where the mask holds (Vaswani et al. 2017, eq. 1); as `jax.nn.dot_product_attention`.

    query: [batch, queries, heads, d]; key: [batch, keys, key heads, d]; value: [batch, keys, key heads, v];
    result: [batch, queries, heads, v]. Each key head serves heads / key heads queries' heads, which are next to each
    other (grouped queries, Ainslie et al. 2023). bias, and mask, of booleans: broadcastable to [batch, heads, queries, keys].
    scale: 1/√d by default. is_causal: no query sees a key after it. dropout_rate: the probability with which a weight is
    dropped, if there is a `dropout_rng`. block_size: queries whose scores are in memory at a time, by default as many as
    the cache of a processor holds. implementation: "blocks" is this file's; "cudnn" is the kernel of an NVIDIA GPU, which
    is differentiated once only and takes neither bias, mask nor dropout; by default cudnn where it takes these arguments.

    The backward pass keeps no weights: memory grows linearly with the number of queries.

    Raises ValueError for shapes that do not go together.

    >>> x = jax.random.normal(jax.random.key(0), (2, 5, 4, 8))
    >>> y = dot_product_attention(x, x[:, :, :2], x[:, :, :2], is_causal=True)
    >>> bool(jnp.allclose(y, jax.nn.dot_product_attention(x, x[:, :, :2], x[:, :, :2], is_causal=True), atol=1e-6))
    True
    """
    _check(query, key, value, bias, mask)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    rng = dropout_rng if dropout_rate else None
    extras = {"bias": bias, "mask": mask, "rng": rng}
    given = {name: x for name, x in extras.items() if x is not None}
    refused = [*given, *(["block_size"] if block_size else [])]
    if implementation == "cudnn" and refused:
        raise ValueError(f"dot_product_attention: implementation='cudnn' takes no {', '.join(refused)}. Leave one out.")
    if implementation == "cudnn" or (
        not refused and implementation is None and choices.is_for_cudnn(query, key, value)
    ):
        # It has a derivative of its own, which keeps y and ℓ, too.
        return jax.nn.dot_product_attention(query, key, value, scale=scale, is_causal=is_causal, implementation="cudnn")
    options = Options(tuple(given), scale, is_causal, dropout_rate if rng is not None else 0.0, block_size)
    return attention(query, key, value, *given.values(), options=options)


class Options(NamedTuple):
    extras: tuple[str, ...]  # which of bias, mask and rng follow query, key and value
    scale: float
    is_causal: bool
    dropout_rate: float
    block_size: int | None


def _check(query, key, value, bias, mask):
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"dot_product_attention takes [batch, time, heads, features] three times, but got {shapes}.")
    if key.shape[:3] != value.shape[:3] or query.shape[0] != key.shape[0] or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"dot_product_attention: {shapes} do not go together: key and value need the same batch, time and heads, query "
            "and key the same batch and features."
        )
    if query.shape[2] % key.shape[2]:
        raise ValueError(f"dot_product_attention: {query.shape[2]} heads of queries are no multiple of {key.shape[2]}.")
    full = query.shape[0], query.shape[2], query.shape[1], key.shape[1]
    for name, x in {"bias": bias, "mask": mask}.items():
        if x is not None and (x.ndim != 4 or any(n not in (1, m) for n, m in zip(x.shape, full, strict=True))):
            raise ValueError(f"dot_product_attention: {name} {x.shape} does not broadcast to {full}.")
    if mask is not None and mask.dtype != bool:
        raise ValueError(f"dot_product_attention: the mask has dtype {mask.dtype}; give booleans, or a bias.")


# What follows is about one key head and the group of query heads that it serves: q [group, queries, d], k [keys, d],
# v [keys, v], bias and mask [group or 1, queries or 1, keys or 1]. The key heads of the whole batch are taken in turn, as
# many at a time as is fast. Within a block of queries those of all the group stand in one row after the other, so that
# every product is one of two matrices.


class Block(NamedTuple):
    """The queries from `start` to `end`, with the keys that they see: those before `seen`."""

    start: int
    end: int
    seen: int

    def of(self, x):
        """[group, queries, ...] -> [rows, ...], a row for each query of each of the group."""
        return x[:, self.start : self.end].reshape(-1, *x.shape[2:])

    def of_scores(self, x, group):
        """[rows, seen] of a bias or a mask, which may be the same for all of the group, queries or keys."""
        x = x if x.shape[1] == 1 else x[:, self.start : self.end]
        x = x if x.shape[2] == 1 else x[:, :, : self.seen]
        return jnp.broadcast_to(x, (group, self.end - self.start, self.seen)).reshape(-1, self.seen)


def _blocks(queries: int, keys: int, rows: int, options: Options) -> list[Block]:
    """Keys that no query of a block sees are left out; with a bias or a mask none is, as a query whose keys are all masked
    looks at all of them."""
    is_causal = options.is_causal and not {"bias", "mask"} & {*options.extras}
    starts = range(0, queries, rows)
    ends = [min(start + rows, queries) for start in starts]
    return [Block(a, b, min(b, keys) if is_causal else keys) for a, b in zip(starts, ends, strict=True)]


def _masked(scores, group, extras, block: Block, options: Options, by_key: bool = False):
    """scale Q Kᵀ -> scale Q Kᵀ + bias of a block, masked, and where the mask holds, if there is one; or the transposes."""
    ordered = lambda x: x.T if by_key else x
    scores = options.scale * scores
    if "bias" in extras:
        scores += ordered(block.of_scores(extras["bias"], group)).astype(scores.dtype)
    seen = []
    if "mask" in extras:
        seen.append(ordered(block.of_scores(extras["mask"], group)))
    if options.is_causal:
        causal = jnp.arange(block.start, block.end)[:, None] >= jnp.arange(block.seen)[None]
        seen.append(ordered(jnp.tile(causal, (group, 1))))
    if seen:  # the number that `jax.nn.dot_product_attention` has in the place of a masked score
        hidden = jnp.asarray(-0.7 * jnp.finfo(scores.dtype).max, scores.dtype)
        scores = jnp.where(functools.reduce(jnp.logical_and, seen), scores, hidden)
    return scores, functools.reduce(jnp.logical_and, seen) if "mask" in extras else None


def _kept(shape, dtype, extras, block: Block, options: Options):
    """What dropout multiplies the weights of a block by: 0, or 1 / (1 - rate)."""
    is_kept = jax.random.bernoulli(jax.random.fold_in(extras["rng"], block.start), 1 - options.dropout_rate, shape)
    return jnp.where(is_kept, jnp.asarray(1 / (1 - options.dropout_rate), dtype), 0)


def _attend(q, k, v, extras, options, rows):
    """y and ℓ."""
    group, queries, _ = q.shape
    dtype = at_least_float32(q.dtype)
    ys, logsumexps = [], []
    for block in _blocks(queries, len(k), rows, options):
        scores = jnp.einsum("qd,kd->qk", block.of(q), k[: block.seen], preferred_element_type=dtype)
        scores, _ = _masked(scores, group, extras, block, options)
        largest = jnp.max(scores, -1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, -1, keepdims=True)
        if "rng" in extras:
            weights *= _kept(weights.shape, dtype, extras, block, options)
        y = weights.astype(v.dtype) @ v[: block.seen] / total.astype(v.dtype)
        ys.append(y.reshape(group, -1, v.shape[-1]))
        logsumexps.append((largest + jnp.log(total)).reshape(group, -1))
    return jnp.concatenate(ys, 1), jnp.concatenate(logsumexps, 1)


def _reverse(q, k, v, extras, y, logsumexp, g, options, rows, bias_needed):
    """Q̄, K̄, V̄ and the cotangent of the scores.

    The scores are [keys, rows] here, so that K̄ and V̄ are products without a transposed factor: on a CPU a third faster."""
    group, queries, d = q.shape
    dtype = logsumexp.dtype
    q_bars, score_bars = [], []
    k_bar, v_bar = jnp.zeros_like(k), jnp.zeros_like(v)
    dots = jnp.sum((g * y).astype(dtype), -1)  # D
    for block in _blocks(queries, len(k), rows, options):
        q_rows, g_rows, k_seen, v_seen = block.of(q), block.of(g), k[: block.seen], v[: block.seen]
        scores = jnp.einsum("kd,qd->kq", k_seen, q_rows, preferred_element_type=dtype)
        scores, seen = _masked(scores, group, extras, block, options, by_key=True)
        weights = jnp.exp(scores - block.of(logsumexp)[None])
        if seen is not None:  # of a query whose keys are all masked ℓ is a number so large that it is not exact
            weights = jnp.where(jnp.any(seen, 0, keepdims=True), weights, 1 / block.seen)
        weight_bars = jnp.einsum("kv,qv->kq", v_seen, g_rows, preferred_element_type=dtype)
        kept_weights = weights
        if "rng" in extras:
            kept = _kept(scores.T.shape, dtype, extras, block, options).T
            weight_bars, kept_weights = kept * weight_bars, kept * weights
        score_bar = weights * (weight_bars - block.of(dots)[None])
        if seen is not None:
            score_bar = jnp.where(seen, score_bar, 0)
        if bias_needed:
            score_bars.append(score_bar.T.reshape(group, -1, block.seen))
        score_bar = (options.scale * score_bar).astype(q.dtype)
        q_bars.append(jnp.einsum("kq,kd->qd", score_bar, k_seen).reshape(group, -1, d))
        k_bar = k_bar.at[: block.seen].add(score_bar @ q_rows)
        v_bar = v_bar.at[: block.seen].add(kept_weights.astype(v.dtype) @ g_rows)
    return jnp.concatenate(q_bars, 1), k_bar, v_bar, jnp.concatenate(score_bars, 1) if bias_needed else None


def _over_heads(fun, query, key, value, extras, *others, options):
    """`fun(q, k, v, extras, *others)` of each key head of each example; its results stacked over them. `others` are so
    already."""
    batch, queries, heads, _ = query.shape
    keys, key_heads = key.shape[1:3]
    rows, chunk = choices.attention(heads // key_heads, queries, keys)
    fun = functools.partial(fun, options=options, rows=options.block_size or rows)

    def of_head(name, x, i):
        if name == "rng":
            return jax.random.fold_in(x, i)
        x = x.reshape(x.shape[0], *((1, 1) if x.shape[1] == 1 else (key_heads, heads // key_heads)), *x.shape[2:])
        return x[i // key_heads if x.shape[0] > 1 else 0, i % key_heads if x.shape[1] > 1 else 0]

    def one(inputs):
        i, q, (k,), (v,), *others = inputs
        return fun(q, k, v, {name: of_head(name, x, i) for name, x in extras.items()}, *others)

    inputs = jnp.arange(batch * key_heads), *(_cut(x, key_heads) for x in (query, key, value)), *others
    if chunk >= batch * key_heads:
        return jax.vmap(lambda *xs: one(xs))(*inputs)
    return lax.map(one, inputs, batch_size=chunk if chunk > 1 else None)


def _cut(x, key_heads):
    """[batch, time, heads, features] -> [batch * key heads, group, time, features]"""
    batch, time, heads, features = x.shape
    x = jnp.moveaxis(x.reshape(batch, time, key_heads, heads // key_heads, features), 1, 3)
    return x.reshape(batch * key_heads, heads // key_heads, time, features)


def _joined(x, shape):
    """The way back, to [batch, time, heads, features]."""
    batch, time, _, features = shape
    key_heads, group = len(x) // max(batch, 1), x.shape[1] if x.ndim == 4 else 1
    return jnp.moveaxis(x.reshape(batch, key_heads, group, time, features), 3, 1).reshape(shape)


def _forward(site, query, key, value, *extras, options):
    named = dict(zip(options.extras, extras, strict=True))
    y, logsumexp = _over_heads(_attend, query, key, value, named, options=options)
    y = _joined(y, (*query.shape[:3], value.shape[-1]))
    return [y], (query, key, value, named, y, logsumexp)


def _backward(site, residuals, g, *, options):
    query, key, value, extras, y, logsumexp = residuals
    key_heads = key.shape[2]
    bias_needed = "bias" in extras and site.needs[3]
    others = _cut(y, key_heads), logsumexp, _cut(g, key_heads)
    reverse = functools.partial(_reverse, bias_needed=bias_needed)
    *bars, score_bar = _over_heads(reverse, query, key, value, extras, *others, options=options)
    bars = [_joined(bar, x.shape) for bar, x in zip(bars, (query, key, value), strict=True)]
    extra_bars: list[Any] = [None] * len(extras)
    if bias_needed:
        bias = site.avals[3]
        score_bar = score_bar.reshape(query.shape[0], query.shape[2], query.shape[1], key.shape[1])
        extra_bars[0] = unbroadcast(score_bar.astype(bias.dtype), bias)
    return [*bars, *extra_bars]


@functools.partial(op, rule=staged(_forward, _backward))
def attention(query, key, value, *extras, options):
    y, _ = _over_heads(_attend, query, key, value, dict(zip(options.extras, extras, strict=True)), options=options)
    return _joined(y, (*query.shape[:3], value.shape[-1]))
