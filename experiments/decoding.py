"""How a trained model is made to write: beam search (Graves 2012), which finds the likeliest translation, or nearly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.parallel_texts import Pair
from experiments.tokens import encode, filled
from experiments.translators import END, PAD, START, Translator, logits
from fbp import train


def translate(
    model: Translator,
    tokenizer: Any,
    state: train.TrainState,
    pairs: Sequence[Pair],
    source_length: int,
    length: int,
    beams: int,
) -> list[str]:
    """The French, of at most `length` tokens, that beam search finds for the English (of which `source_length` are read)."""

    @jax.jit
    def search(state, source):
        params = state.params
        seen, kept = model.start(params, jnp.repeat(source, beams, 0), length)

        def step(kept, token, place):
            kept, features, _ = model.step(params, seen, kept, token, place)
            return kept, logits(params, features)

        return beam_search(step, kept, len(source), length, beams)

    sources = [source for source, _ in encode(tokenizer, pairs)]
    order = np.argsort([len(source) for source in sources], kind="stable")  # a batch is done when its longest is
    rows = np.array([filled(sources[i], source_length) for i in order])
    found = train.evaluate(search, state, rows, min(len(rows), 100))
    texts = dict(zip(order, tokenizer.decode_batch(found.tolist()), strict=True))
    return [texts[i].strip() for i in range(len(pairs))]


def looks(model: Translator, params: Any, source: Sequence[int], target: Sequence[int]) -> np.ndarray:
    """Where a model looks as it writes each token of a translation: [target, source]."""
    seen, kept = model.start(params, jnp.array([source]), len(target))

    def step(kept, inputs):
        kept, _, weights = model.step(params, seen, kept, *inputs)
        return kept, weights[0]

    tokens = jnp.array([[START], *([token] for token in target[:-1])])
    return np.asarray(lax.scan(step, kept, (tokens, jnp.arange(len(target))))[1])


def beam_search(
    step: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]],
    kept: Any,
    batch: int,
    length: int,
    beams: int = 4,
    alpha: float = 0.6,
) -> jax.Array:
    """The best of `beams` sequences for each of a batch, with END, without START, filled up with PAD: [batch, length].

    step: (kept, token [batch · beams], place) -> (kept, logits [batch · beams, vocabulary]).
    kept: a pytree whose leaves have batch · beams as their second axis, the beams of one next to each other.
    Sequences are compared by log p / ((5 + |y|) / 6)^alpha (Wu et al. 2016, eq. 14), else short ones would win.
    """
    tokens = jnp.full((batch, beams, length + 1), PAD, jnp.int32).at[:, :, 0].set(START)
    scores = jnp.full((batch, beams), -jnp.inf).at[:, 0].set(0.0)  # at first all beams are the same: only one counts

    def unfinished(carry):
        place, tokens, _, _ = carry
        return (place < length) & jnp.any(goes_on(tokens, place))

    def goes_on(tokens, place):
        last = lax.dynamic_index_in_dim(tokens, place, 2, keepdims=False)
        return (last != END) & (last != PAD)

    def extend(carry):
        place, tokens, scores, kept = carry
        last = lax.dynamic_index_in_dim(tokens, place, 2, keepdims=False)
        kept, scored = step(kept, last.ravel(), place)
        log_p = jax.nn.log_softmax(scored.astype(jnp.float32)).reshape(batch, beams, -1)
        vocabulary = log_p.shape[-1]
        is_pad = jnp.arange(vocabulary) == PAD
        more = goes_on(tokens, place)[..., None]
        log_p = jnp.where(more, jnp.where(is_pad, -jnp.inf, log_p), jnp.where(is_pad, 0.0, -jnp.inf))
        total = scores[..., None] + log_p
        lengths = jnp.sum(tokens != PAD, -1, keepdims=True) - jnp.where(more, 0, 1)
        ranked = total / ((5 + lengths) / 6) ** alpha
        _, chosen = lax.top_k(ranked.reshape(batch, -1), beams)
        scores = jnp.take_along_axis(total.reshape(batch, -1), chosen, 1)
        origin, token = chosen // vocabulary, (chosen % vocabulary).astype(jnp.int32)
        tokens = jnp.take_along_axis(tokens, origin[..., None], 1)
        tokens = lax.dynamic_update_index_in_dim(tokens, token, place + 1, 2)
        rows = (jnp.arange(batch)[:, None] * beams + origin).ravel()
        return place + 1, tokens, scores, jax.tree.map(lambda x: x[:, rows], kept)

    place = jnp.zeros((), jnp.int32)
    _, tokens, _, _ = lax.while_loop(unfinished, extend, (place, tokens, scores, kept))
    return tokens[:, 0, 1:]  # top_k gives the best first
