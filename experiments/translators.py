"""Two models that translate, made of fbp's layers: of attention alone (Vaswani et al. 2017), and recurrent (Luong et al. 2015).

Each runs in two ways that give the same: over whole sentences at once, to train; and a token at a time, to translate, keeping
what it has computed of earlier ones. Source, target and output share a table of embeddings (Press & Wolf 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fbp import nn
from fbp.nn.attention import attention_weights

PAD, START, END = 0, 1, 2
REACH = 2  # places before one that the attention model's convolutions read


class Translator(NamedTuple):
    """Source and target are tokens: integers [batch, time], filled up with PAD.

    layer: (source, target) -> features [batch, time, features], whose `logits` are of the token after each of the target's.
    start: (params, source, length) -> (seen, kept): of the source, and of the up to `length` tokens that will be made of it.
    step: (params, seen, kept, token [batch], place) -> (kept, features [batch, features], weights [batch, source time]).
    The leaves of `kept` are [layers, batch, ...].
    """

    layer: nn.Layer
    start: Callable[[Any, jax.Array, int], tuple[Any, Any]]
    step: Callable[[Any, Any, Any, jax.Array, jax.Array], tuple[Any, jax.Array, jax.Array]]


def logits(params: Any, features: jax.Array) -> jax.Array:
    return features @ params["embed"]["embedding"].T


def attention_model(vocabulary: int, features: int, depth: int, heads: int, rate: float, length: int) -> Translator:
    """An encoder and a decoder of `depth` blocks each, for sentences of up to `length` tokens.

    Before a block attends, each place takes in the `REACH` before it, by a convolution of each feature: to find what followed
    the last words elsewhere is then work for one layer, not for two. (So et al. 2021, section 3, have such convolutions within
    attention.) Attention is without biases: that of the keys adds the same to all scores of a query, so its gradient is zero.
    """
    embed, drop, norm = nn.embed(vocabulary, features), nn.dropout(rate), nn.layer_norm()
    attend, attend_causally = (
        nn.multi_head_dot_product_attention(heads, use_bias=False, is_causal=is_causal) for is_causal in (False, True)
    )
    mlp = nn.sequential(nn.dense(4 * features), nn.gelu(), nn.dense(features))
    near = nn.conv(features, (REACH + 1,), padding=[(REACH, 0)], feature_group_count=features, use_bias=False)
    encoder = nn.stack(block({"near": near, "own": attend, "mlp": mlp}, rate), depth)
    decoder = nn.stack(block({"near": near, "own": attend_causally, "source": attend, "mlp": mlp}, rate), depth)
    layers = {"encoder": encoder, "encoder_norm": norm, "decoder": decoder, "decoder_norm": norm}
    places = sinusoids(length, features)

    def embedded(params, tokens, place: Any = 0):
        x = features**0.5 * embed.apply(params["embed"], {}, tokens)[0]
        return x + lax.dynamic_slice_in_dim(jnp.asarray(places, x.dtype), place, tokens.shape[1])

    def init(rng, source, target):
        x = jax.ShapeDtypeStruct((*target.shape, features), jnp.float32)
        rngs = jax.random.split(rng, 1 + len(layers))
        both = {key: layer.init(r, x) for (key, layer), r in zip(layers.items(), rngs[1:], strict=True)}
        params = {"embed": embed.init(rngs[0], target)[0]} | {key: params for key, (params, _) in both.items()}
        return params, {key: state for key, (_, state) in both.items()}

    def run(params, state, name, x, rngs, train, **options):
        x, _ = drop.apply({}, {}, x, train=train, rng=rngs[0])
        x, _ = layers[name].apply(params[name], state[name], x, train=train, rng=rngs[1], **options)
        return norm.apply(params[f"{name}_norm"], {}, x)[0]

    def encode(params, state, source, rngs=(None, None), train=False):
        mask = (source != PAD)[:, None, None]
        return run(params, state, "encoder", embedded(params, source), rngs, train, own=Inputs(mask=mask))

    def apply(params, state, source, target, *, train=False, rng=None):
        rngs = [None] * 4 if rng is None else jax.random.split(rng, 4)
        memory = encode(params, state, source, rngs[:2], train)
        seen = Inputs(memory, mask=(source != PAD)[:, None, None])
        return run(params, state, "decoder", embedded(params, target), rngs[2:], train, source=seen), state

    def start(params, source, length):
        _, state = jax.eval_shape(lambda: init(jax.random.key(0), source, source))  # it is empty
        memory = encode(params, state, source)
        keys, values = jax.vmap(lambda p: keys_values(p, memory))(params["decoder"]["source"])
        empty = jnp.zeros((depth, len(source), length, *keys.shape[3:]), keys.dtype)
        last = jnp.zeros((depth, len(source), REACH, features), keys.dtype)
        return ((keys, values), source != PAD), ((empty, empty), last)

    def step(params, seen, kept, token, place):
        """The blocks of the decoder at one place, x: [batch, 1, features], given the keys and values of those before it, and
        what the convolutions read of the last ones."""
        source, mask = seen
        before = (jnp.arange(kept[0][0].shape[2]) <= place)[None]

        def one(x, inputs):
            p, source, (past, last) = inputs
            normed = lambda key, x: norm.apply(p[f"norm_{key}"], {}, x)[0]
            last = jnp.concatenate([last, normed("near", x)], 1)
            x = x + jnp.einsum("btf,tf->bf", last, p["near"]["kernel"][:, 0])[:, None]
            y = normed("own", x)
            past = jax.tree.map(
                lambda old, new: lax.dynamic_update_slice_in_dim(old, new, place, 1), past, keys_values(p["own"], y)
            )
            x = x + attended(p["own"], y, past, before)[0]
            y, weights = attended(p["source"], normed("source", x), source, mask)
            x = x + y
            x = x + mlp.apply(p["mlp"], {key: {} for key in p["mlp"]}, normed("mlp", x))[0]
            return x, ((past, last[:, 1:]), jnp.mean(weights, (1, 2)))

        x = embedded(params, token[:, None], place)
        x, (kept, weights) = lax.scan(one, x, (params["decoder"], source, kept))
        return kept, norm.apply(params["decoder_norm"], {}, x)[0][:, 0], jnp.mean(weights, 0)

    return Translator(nn.Layer("attention_model", init, apply), start, step)


class Inputs(NamedTuple):
    """What a part of a block takes beside x."""

    memory: jax.Array | None = None
    mask: jax.Array | None = None


def block(parts: Mapping[str, nn.Layer], rate: float) -> nn.Layer:
    """x ← x + dropout(f(norm(x))) for each part f (Xiong et al. 2020); apply takes the other `Inputs` of parts by their names."""
    norm, drop = nn.layer_norm(), nn.dropout(rate)

    def init(rng, x):
        both = {
            key: part.init(r, x)
            for (key, part), r in zip(parts.items(), jax.random.split(rng, len(parts)), strict=True)
        }
        norms = {f"norm_{key}": norm.init(rng, x)[0] for key in parts}
        return norms | {key: params for key, (params, _) in both.items()}, {
            key: state for key, (_, state) in both.items()
        }

    def apply(params, state, x, *, train=False, rng=None, **inputs):
        rngs = [None] * len(parts) if rng is None else jax.random.split(rng, len(parts))
        for (key, part), part_rng in zip(parts.items(), rngs, strict=True):
            with jax.named_scope(key):
                memory, mask = inputs.get(key, Inputs())
                y, _ = norm.apply(params[f"norm_{key}"], {}, x)
                xs = (y,) if memory is None else (y, memory)
                y, _ = part.apply(params[key], state[key], *xs, **({} if mask is None else {"mask": mask}))
                x = x + drop.apply({}, {}, y, train=train, rng=part_rng)[0]
        return x, state

    return nn.Layer("block", init, apply)


def keys_values(params, x):
    """What `nn.multi_head_dot_product_attention` of these parameters compares with its queries, and gives of x."""
    return tuple(jnp.einsum("btf,fhd->bthd", x, params[key]["kernel"]) for key in ("key", "value"))


def attended(params, x, memory, mask):
    """The same layer for queries x: [batch, 1, features], with its weights: [batch, heads, 1, keys]."""
    keys, values = memory
    query = jnp.einsum("btf,fhd->bthd", x, params["query"]["kernel"])
    weights = attention_weights(query, keys, mask=mask[:, None, None])
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, values)
    return jnp.einsum("bqhd,hdf->bqf", y, params["out"]["kernel"]), weights


def sinusoids(length: int, features: int) -> np.ndarray:
    """sin(t ω_i), cos(t ω_i), ω from 1 down to 1/10,000 (Vaswani et al. 2017, section 3.5): [length, features]."""
    angles = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(features // 2) / (features // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


def recurrent_model(vocabulary: int, features: int, depth: int, heads: int, rate: float, length: int) -> Translator:
    """A GRU over the source in both directions; over the target one GRU, attention of its states to those of the source,
    and `depth` more over both (Wu et al. 2016, section 3). So every step of training but the recurrences is of all places."""
    embed, drop = nn.embed(vocabulary, features), nn.dropout(rate)
    attend = nn.multi_head_dot_product_attention(1, use_bias=False)
    join = nn.dense(features)
    cells = {"forward": nn.gru_cell(features // 2), "backward": nn.gru_cell(features // 2)}
    decoders = {f"decoder_{i}": nn.gru_cell(features) for i in range(depth + 1)}
    layers = {key: nn.rnn(cell, reverse=key == "backward", keep_order=True) for key, cell in (cells | decoders).items()}

    def init(rng, source, target):
        x, both = (jax.ShapeDtypeStruct((*target.shape, n * features), jnp.float32) for n in (1, 2))
        shapes = {key: x if key in (*cells, "decoder_0") else both for key in layers}
        rngs = iter(jax.random.split(rng, len(layers) + 3))
        params = {"embed": embed.init(next(rngs), target)[0]}
        params |= {key: layer.init(next(rngs), shapes[key])[0] for key, layer in layers.items()}
        return params | {"attention": attend.init(next(rngs), x)[0], "join": join.init(next(rngs), both)[0]}, {}

    def embedded(params, tokens):
        return jnp.where((tokens != PAD)[..., None], features**0.5 * embed.apply(params["embed"], {}, tokens)[0], 0)

    def run(params, key, x):
        return layers[key].apply(params[key], {}, x)[0]

    def encode(params, x):
        return jnp.concatenate([run(params, key, x) for key in cells], -1)

    def apply(params, state, source, target, *, train=False, rng=None):
        rngs = iter([None] * (depth + 3) if rng is None else jax.random.split(rng, depth + 3))
        dropped = lambda x: drop.apply({}, {}, x, train=train, rng=next(rngs))[0]
        memory = encode(params, dropped(embedded(params, source)))
        x = run(params, "decoder_0", dropped(embedded(params, target)))
        context, _ = attend.apply(params["attention"], {}, x, memory, mask=(source != PAD)[:, None, None])
        for key in list(decoders)[1:]:
            x = x + run(params, key, dropped(jnp.concatenate([x, context], -1)))
        return joined(params, x, context), state

    def joined(params, x, context):
        return join.apply(params["join"], {}, jnp.concatenate([x, context], -1))[0]

    def start(params, source, length):
        memory = keys_values(params["attention"], encode(params, embedded(params, source)))
        hidden = jnp.zeros((depth + 1, len(source), features), memory[0].dtype)
        return (memory, source != PAD), hidden

    def step(params, seen, kept, token, place):
        advance = lambda i, x: decoders[f"decoder_{i}"].apply(params[f"decoder_{i}"]["cell"], kept[i], x)[1]
        hidden = [advance(0, embedded(params, token))]
        x = hidden[0]
        context, weights = attended(params["attention"], x[:, None], *seen)
        for i in range(1, depth + 1):
            hidden.append(advance(i, jnp.concatenate([x, context[:, 0]], -1)))
            x = x + hidden[i]
        return jnp.stack(hidden), joined(params, x, context[:, 0]), weights[:, 0, 0]

    return Translator(nn.Layer("recurrent_model", init, apply), start, step)


MODELS = {"attention": attention_model, "recurrent": recurrent_model}
