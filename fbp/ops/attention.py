"""Attention whose matrix of weights is never kept (Rabe & Staats 2021; Dao et al. 2022).

    S = scale Q Kᵀ + bias,   P = exp(S - ℓ),   ℓ = logsumexp S,   y = P V

Kept from the forward pass are y and ℓ, a number for each query. Both ways P is made a block at a time, by the largest score
so far (Milakov & Gimelshein 2018, algorithm 3), and going back (Dao et al. 2022, appendix B.2):

    D = Σ ȳ y,   V̄ = Pᵀ ȳ,   S̄ = P (ȳ Vᵀ - D),   Q̄ = scale S̄ K,   K̄ = scale S̄ᵀ Q,   bias̄ = S̄
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

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
    implementation: choices.AttentionImplementation | None = None,
) -> jax.Array:
    """softmax(scale Q Kᵀ + bias) V, where the mask holds (Vaswani et al. 2017, eq. 1); as `jax.nn.dot_product_attention`.

    query: [batch, queries, heads, d]; key: [batch, keys, key heads, d]; value: [batch, keys, key heads, v];
    result: [batch, queries, heads, v]. Each key head serves heads / key heads queries' heads, which are next to each
    other (grouped queries, Ainslie et al. 2023). bias, and mask, of booleans: broadcastable to [batch, heads, queries, keys].
    scale: 1/√d by default. is_causal: no query sees a key after it. dropout_rate: the probability with which a weight is
    dropped, if there is a `dropout_rng`. block_size: queries and keys whose scores are in memory at a time, by default as
    many as are fast. implementation: "blocks" is this file's; "cudnn" is the kernel of an NVIDIA GPU, which is differentiated
    once only and takes neither bias, mask nor dropout; by default cudnn where it takes these arguments.

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
    asked = ["dropout_rate" if name == "rng" else name for name in given] + ["block_size"] * bool(block_size)
    refused = {"cudnn": asked, "xla": [name for name in asked if name not in ("bias", "mask")], "blocks": []}
    if implementation and refused[implementation]:
        raise ValueError(
            f"dot_product_attention: implementation={implementation!r} takes no {', '.join(refused[implementation])}. Leave "
            "one out."
        )
    chosen = implementation or choices.attention_implementation(query, key, value, refused)
    if chosen == "cudnn":  # it has a derivative of its own, which keeps y and ℓ, too
        return jax.nn.dot_product_attention(query, key, value, scale=scale, is_causal=is_causal, implementation="cudnn")
    options = Options(tuple(given), scale, is_causal, dropout_rate if rng is not None else 0.0, block_size)
    if chosen == "xla":
        return _at_once(query, key, value, given, options)
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


def _at_once(query, key, value, extras, options):
    """All scores in memory, and the gradient of the program. Each query head has a key head of its own, a copy if it shares
    one: so no axis of the scores is moved, which are much larger than the keys."""
    group, dtype = query.shape[2] // key.shape[2], at_least_float32(query.dtype)
    if group > 1:
        key, value = jnp.repeat(key, group, 2), jnp.repeat(value, group, 2)
    scores = options.scale * jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=dtype)
    if "bias" in extras:
        scores += extras["bias"].astype(dtype)
    seen = [extras["mask"]] if "mask" in extras else []
    seen += [jnp.tri(*scores.shape[2:], dtype=bool)] if options.is_causal else []
    if seen:  # in full, before it is applied: else XLA keeps the masked scores, too
        seen = jnp.broadcast_to(functools.reduce(jnp.logical_and, seen), scores.shape)
        scores = jnp.where(seen, scores, _hidden(dtype))
    weights = jax.nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("bhqk,bkhv->bqhv", weights, value)


# What follows is about one key head and the group of query heads that it serves: q [group, queries, d], k [1, keys, d],
# v [1, keys, v], bias and mask [group or 1, queries or 1, keys or 1]. The key heads of the whole batch are taken in turn, as
# many at a time as is fast. Scores are made a block of queries and keys at a time, of which no more than one is in memory;
# in it the queries of all the group stand in one row after the other, so that every product is one of two matrices.


class Block(NamedTuple):
    """The scores of some queries, from `query` on, and some keys, from `key` on."""

    query: Any
    key: Any
    queries: int
    keys: int

    def rows(self, x):
        """[group, queries, features] -> [rows, features], a row for each query of each of the group."""
        return lax.dynamic_slice_in_dim(x, self.query, self.queries, 1).reshape(-1, x.shape[-1])

    def with_rows(self, x, rows):
        return lax.dynamic_update_slice_in_dim(x, rows.reshape(len(x), self.queries, -1), self.query, 1)

    def columns(self, x):
        """[1, keys, features] -> [columns, features]"""
        return lax.dynamic_slice_in_dim(x[0], self.key, self.keys)

    def with_columns(self, x, columns):
        return lax.dynamic_update_slice_in_dim(x, columns[None], self.key, 1)

    def of_scores(self, x, group):
        """[rows, columns] of a bias or a mask, which may be the same for all of the group, queries or keys."""
        for axis, start, size in (1, self.query, self.queries), (2, self.key, self.keys):
            x = x if x.shape[axis] == 1 else lax.dynamic_slice_in_dim(x, start, size, axis)
        return jnp.broadcast_to(x, (group, self.queries, self.keys)).reshape(-1, self.keys)

    # The same of transposed arrays, whose features come first.

    def rows_t(self, x):
        """[features, group, queries] -> [features, rows]"""
        return lax.dynamic_slice_in_dim(x, self.query, self.queries, 2).reshape(len(x), -1)

    def with_rows_t(self, x, rows):
        return lax.dynamic_update_slice_in_dim(x, rows.reshape(*x.shape[:2], self.queries), self.query, 2)

    def columns_t(self, x):
        """[features, 1, keys] -> [features, columns]"""
        return lax.dynamic_slice_in_dim(x[:, 0], self.key, self.keys, 1)


def _over_blocks(step, carry, queries, keys, sizes, options):
    """`step(carry, block) -> carry` of all blocks; but those of keys that no query sees are left out. With a bias or a mask
    none is, as a query whose keys are all masked looks at all of them."""
    skips = options.is_causal and not {"bias", "mask"} & {*options.extras}
    sizes = min(sizes[0], queries), min(sizes[1], keys)
    starts = [
        (i, j)
        for i in range(0, queries, max(1, sizes[0]))
        for j in range(0, keys, max(1, sizes[1]))
        if not skips or j < i + sizes[0]
    ]
    if len(starts) == 1:
        return step(carry, Block(0, 0, *sizes))
    blocks = jnp.array(starts, jnp.int32).reshape(-1, 2)
    return lax.scan(lambda carry, ij: (step(carry, Block(ij[0], ij[1], *sizes)), None), carry, blocks)[0]


def _padded(x, axis, size):
    """x with zeros behind, to whole blocks. What does not vary along the axis stays so."""
    missing = 0 if x.shape[axis] in (0, 1) else -x.shape[axis] % min(size, x.shape[axis])
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)]) if missing else x


def _hidden(dtype):
    """What `jax.nn.dot_product_attention` has in the place of a masked score."""
    return jnp.asarray(-0.7 * jnp.finfo(dtype).max, dtype)


def _masked(scores, group, keys, extras, block: Block, options: Options, by_key: bool = False):
    """scale Q Kᵀ -> scale Q Kᵀ + bias of a block, masked, and where the mask holds, if there is one; or the transposes."""
    ordered = lambda x: x.T if by_key else x
    scores = options.scale * scores
    if "bias" in extras:
        scores += ordered(block.of_scores(extras["bias"], group)).astype(scores.dtype)
    seen = []
    if "mask" in extras:
        seen.append(ordered(block.of_scores(extras["mask"], group)))
    columns = block.key + jnp.arange(block.keys)
    if options.is_causal:
        causal = (block.query + jnp.arange(block.queries))[:, None] >= columns[None]
        seen.append(ordered(jnp.tile(causal, (group, 1))))
    if seen:
        scores = jnp.where(functools.reduce(jnp.logical_and, seen), scores, _hidden(scores.dtype))
    if keys % block.keys:  # what was put behind the keys is none
        scores = jnp.where(ordered(columns[None] < keys), scores, -jnp.inf)
    return scores, functools.reduce(jnp.logical_and, seen) if "mask" in extras else None


def _kept(shape, dtype, extras, block: Block, options: Options):
    """What dropout multiplies the weights of a block by: 0, or 1 / (1 - rate)."""
    rng = jax.random.fold_in(jax.random.fold_in(extras["rng"], block.query), block.key)
    is_kept = jax.random.bernoulli(rng, 1 - options.dropout_rate, shape)
    return jnp.where(is_kept, jnp.asarray(1 / (1 - options.dropout_rate), dtype), 0)


def _with_blocks(q_like, k_like, extras, sizes):
    """Arrays of queries and of keys, and bias and mask, of whole blocks."""
    rows, columns = sizes
    extras = {name: x if name == "rng" else _padded(_padded(x, 1, rows), 2, columns) for name, x in extras.items()}
    return [_padded(x, 1, rows) for x in q_like], [_padded(x, 1, columns) for x in k_like], extras


def _attend(q, k, v, extras, options, sizes):
    """y, and ℓ as its one feature."""
    (group, queries, _), keys = q.shape, k.shape[1]
    dtype = at_least_float32(q.dtype)
    (q,), (k, v), extras = _with_blocks([q], [k, v], extras, sizes)

    def step(carry, block):
        y, largest, total = map(block.rows, carry)
        scores = jnp.einsum("qd,kd->qk", block.rows(q), block.columns(k), preferred_element_type=dtype)
        scores, _ = _masked(scores, group, keys, extras, block, options)
        new = jnp.maximum(largest, jnp.max(scores, -1, keepdims=True))
        shift = jnp.where(new == -jnp.inf, 0, new)  # of keys that a bias rules out
        weights, shrunk = jnp.exp(scores - shift), jnp.exp(largest - shift)
        total = shrunk * total + jnp.sum(weights, -1, keepdims=True)
        if "rng" in extras:
            weights *= _kept(weights.shape, dtype, extras, block, options)
        y = shrunk * y + jnp.matmul(weights.astype(v.dtype), block.columns(v), preferred_element_type=dtype)
        return [block.with_rows(x, rows) for x, rows in zip(carry, (y, new, total), strict=True)]

    zeros = jnp.zeros((*q.shape[:2], v.shape[-1]), dtype), jnp.zeros((*q.shape[:2], 1), dtype)
    carry = [zeros[0], zeros[1] - jnp.inf, zeros[1]]
    y, largest, total = (x[:, :queries] for x in _over_blocks(step, carry, queries, keys, sizes, options))
    return (y / total).astype(v.dtype), largest + jnp.log(total)


def _reverse(q, k, v, y, logsumexp, g, extras, options, sizes, bias_needed):
    """Q̄, K̄, V̄ and, if it is needed, the cotangent of the scores.

    The scores are [keys, rows] here, so that K̄, V̄ and Q̄ᵀ are products without a transposed factor: of K̄ and V̄ that takes a
    third off the time on a CPU, and of Q̄ a tenth off that of both passes."""
    (group, queries, _), keys = q.shape, k.shape[1]
    dtype = logsumexp.dtype
    # D; a product, as XLA's sum over so short an axis is slow on a CPU: 0.85 to 0.9 of the time of both passes
    dots = jnp.einsum("gqv,gqv->gq", g, y, preferred_element_type=dtype)[..., None]
    (q, logsumexp, g, dots), (k, v), extras = _with_blocks([q, logsumexp, g, dots], [k, v], extras, sizes)
    transposed = lambda x: jnp.moveaxis(x, 2, 0)
    k_t = transposed(k)

    def step(bars, block):
        q_bar_t, k_bar, v_bar, *score_bars = bars
        q_rows, g_rows, k_columns, v_columns = block.rows(q), block.rows(g), block.columns(k), block.columns(v)
        scores = jnp.einsum("kd,qd->kq", k_columns, q_rows, preferred_element_type=dtype)
        scores, seen = _masked(scores, group, keys, extras, block, options, by_key=True)
        logsumexps = block.rows(logsumexp).T
        weights = jnp.exp(scores - logsumexps)
        if seen is not None:  # of a query whose keys are all masked ℓ is a number so large that it is not exact
            hidden = _hidden(dtype)
            weights = jnp.where(
                jnp.abs(logsumexps - hidden) > -1e-3 * hidden, weights, jnp.where(scores > -jnp.inf, 1 / keys, 0)
            )
        weight_bars = jnp.einsum("kv,qv->kq", v_columns, g_rows, preferred_element_type=dtype)
        kept_weights = weights
        if "rng" in extras:
            kept = _kept(scores.T.shape, dtype, extras, block, options).T
            weight_bars, kept_weights = kept * weight_bars, kept * weights
        score_bar = weights * (weight_bars - block.rows(dots).T)
        if seen is not None:
            score_bar = jnp.where(seen, score_bar, 0)
        if bias_needed:
            place = jnp.zeros_like(block.query), block.query, block.key
            part = score_bar.T.reshape(group, block.queries, block.keys)
            score_bars = [lax.dynamic_update_slice(score_bars[0], part, place)]
        score_bar = (options.scale * score_bar).astype(q.dtype)
        product = functools.partial(jnp.matmul, preferred_element_type=dtype)
        q_rows_t = block.rows_t(q_bar_t) + product(block.columns_t(k_t), score_bar)
        q_bar_t = block.with_rows_t(q_bar_t, q_rows_t)
        k_bar = block.with_columns(k_bar, block.columns(k_bar) + product(score_bar, q_rows))
        v_bar = block.with_columns(v_bar, block.columns(v_bar) + product(kept_weights.astype(v.dtype), g_rows))
        return [q_bar_t, k_bar, v_bar, *score_bars]

    bars = [jnp.zeros(x.shape, dtype) for x in (transposed(q), k, v)]
    bars += [jnp.zeros((*q.shape[:2], k.shape[1]), dtype)] if bias_needed else []
    q_bar_t, k_bar, v_bar, *score_bars = _over_blocks(step, bars, queries, keys, sizes, options)
    q_bar = jnp.moveaxis(q_bar_t, 0, 2)
    bars = q_bar[:, :queries].astype(q.dtype), k_bar[:, :keys].astype(k.dtype), v_bar[:, :keys].astype(v.dtype)
    return *bars, *(score_bar[:, :queries, :keys] for score_bar in score_bars)


def _over_heads(fun, arrays, extras, options):
    """`fun(*arrays, extras)` of each key head of each example. Arrays are [batch, time, heads, features], as are the results;
    to `fun` they are [group, time, features]."""
    query, key = arrays[:2]
    (batch, queries, heads, _), keys, key_heads = query.shape, key.shape[1], key.shape[2]
    sizes, at_once = choices.attention(heads // key_heads, queries, keys, query.shape[3])
    fun = functools.partial(fun, options=options, sizes=[options.block_size] * 2 if options.block_size else sizes)

    def of_head(name, x, i):
        if name == "rng":
            return jax.random.fold_in(x, i)
        by_key_head = (1, 1) if x.shape[1] == 1 else (key_heads, heads // key_heads)
        x = x.reshape(x.shape[0], *by_key_head, *x.shape[2:])
        return x[i // key_heads if x.shape[0] > 1 else 0, i % key_heads if x.shape[1] > 1 else 0]

    def one(i, *xs):
        return fun(*xs, {name: of_head(name, x, i) for name, x in extras.items()})

    # So many examples, and key heads of each, are taken at a time.
    examples = _largest_divisor(batch, at_once // key_heads)
    some = key_heads if at_once >= key_heads else _largest_divisor(key_heads, at_once)
    parts = key_heads // some

    def part(i):
        first, first_head = i // parts * examples, i % parts * some
        numbers = (first + jnp.arange(examples))[:, None] * key_heads + first_head + jnp.arange(some)

        def of_part(x):
            group = x.shape[2] // key_heads
            shape = examples, x.shape[1], some * group, x.shape[3]
            return _cut(lax.dynamic_slice(x, (first, 0, first_head * group, 0), shape), some)

        ys = jax.vmap(one)(numbers.ravel(), *map(of_part, arrays))
        places = [(first, 0, first_head * y.shape[1], 0) for y in ys]
        return [(place, _joined(y, some)) for place, y in zip(places, ys, strict=True)]

    if batch <= examples and parts == 1:
        return [y for _, y in part(0)]
    ys = [y for _, y in jax.eval_shape(part, 0)]
    shapes = [(batch, y.shape[1], y.shape[2] * parts, y.shape[3]) for y in ys]
    return lax.fori_loop(
        0,
        batch // examples * parts,
        lambda i, ys: [lax.dynamic_update_slice(y, new, place) for y, (place, new) in zip(ys, part(i), strict=True)],
        [jnp.zeros(shape, y.dtype) for shape, y in zip(shapes, ys, strict=True)],
    )


def _largest_divisor(n: int, most: int) -> int:
    return next((d for d in range(min(n, most), 1, -1) if n % d == 0), min(n, 1))


def _cut(x, key_heads):
    """[batch, time, heads, features] -> [batch * key heads, group, time, features]"""
    batch, time, heads, features = x.shape
    x = jnp.moveaxis(x.reshape(batch, time, key_heads, heads // key_heads, features), 1, 3)
    return x.reshape(batch * key_heads, heads // key_heads, time, features)


def _joined(x, key_heads):
    """The way back."""
    n, group, time, features = x.shape
    x = jnp.moveaxis(x.reshape(n // key_heads, key_heads, group, time, features), 3, 1)
    return x.reshape(n // key_heads, time, key_heads * group, features)


def _forward(site, query, key, value, *extras, options):
    named = dict(zip(options.extras, extras, strict=True))
    y, logsumexp = _over_heads(_attend, (query, key, value), named, options)
    return [y], (query, key, value, named, y, logsumexp)


def _backward(site, residuals, g, *, options):
    query, key, value, extras, y, logsumexp = residuals
    bias_needed = "bias" in extras and site.needs[3]
    reverse = functools.partial(_reverse, bias_needed=bias_needed)
    q_bar, k_bar, v_bar, *score_bars = _over_heads(reverse, (query, key, value, y, logsumexp, g), extras, options)
    extra_bars: list[Any] = [None] * len(extras)
    if bias_needed:
        (score_bar,), bias = score_bars, site.avals[3]
        extra_bars[0] = unbroadcast(jnp.swapaxes(score_bar, 1, 2).astype(bias.dtype), bias)
    return [q_bar, k_bar, v_bar, *extra_bars]


@functools.partial(op, rule=staged(_forward, _backward))
def attention(query, key, value, *extras, options):
    y, _ = _over_heads(_attend, (query, key, value), dict(zip(options.extras, extras, strict=True)), options)
    return y
