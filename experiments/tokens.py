"""Pairs of sentences as tokens, and as batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers  # pyright: ignore[reportMissingImports]

from experiments.harness import UserError
from experiments.parallel_texts import Pair
from experiments.translators import END, PAD, START
from fbp import train

SPECIAL = ("<pad>", "<s>", "</s>", "<0>", "<1>", "<2>")  # PAD, START, END, and which French translator is wanted


def learn_tokenizer(pairs: Sequence[Pair], size: int) -> tokenizers.Tokenizer:
    """Byte pairs (Sennrich et al. 2016) of both languages together, so that names are written with the same tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = dict.fromkeys(text for pair in pairs for text in (pair.english, pair.french))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


Encoded = tuple[list[int], list[int]]


def encode(tokenizer: tokenizers.Tokenizer, pairs: Sequence[Pair]) -> list[Encoded]:
    """Source and target of each pair. The source begins with the token of the translator who is wanted, and has the gloss, if
    there is one, before the English."""
    texts = list(dict.fromkeys(text for p in pairs for text in (p.english, p.french, p.gloss)))  # many are in several
    tokens = {text: found.ids for text, found in zip(texts, tokenizer.encode_batch_fast(texts), strict=True)}
    styles = [SPECIAL.index(f"<{pair.style}>") for pair in pairs]
    glosses = [[*tokens[pair.gloss], END] if pair.gloss else [] for pair in pairs]
    return [
        ([style, *gloss, *tokens[pair.english], END], [*tokens[pair.french], END])
        for style, gloss, pair in zip(styles, glosses, pairs, strict=True)
    ]


def filled(tokens: Sequence[int], length: int) -> np.ndarray:
    """Filled up to a length, or cut."""
    row = np.full(length, PAD, np.int32)
    row[: len(tokens)] = tokens[:length]
    return row


def shifted(target: jax.Array) -> jax.Array:
    """What the decoder sees: START, and all but the last token."""
    return jnp.pad(target, [(0, 0), (1, 0)], constant_values=START)[:, :-1]


def bucketed(
    encoded: Sequence[Encoded], buckets: Sequence[int], batch_tokens: int, seed: int, parts: int = 1
) -> tuple[train.Batches, int]:
    """Batches of pairs of similar length, {"source": [pairs, parts * length], "target": [pairs, length]}, and how many pairs
    are in them.

    A pair is in the first of the `buckets` (lengths) that holds it, and `batch_tokens` of its target make a batch: one
    compiled program for each bucket. What is shuffled in each epoch is the order of the batches.
    """
    groups: list[dict[str, np.ndarray]] = []
    used, low = 0, 0
    for length in buckets:
        pairs = [(s, t) for s, t in encoded if low < max(-(-len(s) // parts), len(t)) <= length]
        used, low = used + len(pairs), length
        if not pairs:
            continue
        size = batch_tokens // length
        order = np.random.default_rng((seed, length)).permutation(len(pairs))
        order = np.resize(order, (-(-len(pairs) // size), size))  # the last batch is filled up with the first pairs
        source, target = (
            np.array([filled(s, parts * length) for s, _ in pairs]),
            np.array([filled(t, length) for _, t in pairs]),
        )
        groups += [{"source": source[rows], "target": target[rows]} for rows in order]
    if not groups:
        raise UserError(f"no pair has up to {buckets[-1]} tokens. Give a larger last one of --buckets.")
    return train.Batches(np.arange(len(groups)), 1, seed, lambda batch, rng: groups[batch[0]]), used
