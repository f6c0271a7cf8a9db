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
    """Source, which begins with the token of the translator who is wanted, and target, of each pair."""
    texts = list(
        dict.fromkeys(text for pair in pairs for text in (pair.english, pair.french))
    )  # many are in several pairs
    tokens = {text: found.ids for text, found in zip(texts, tokenizer.encode_batch_fast(texts), strict=True)}
    styles = [SPECIAL.index(f"<{pair.style}>") for pair in pairs]
    return [([s, *tokens[p.english], END], [*tokens[p.french], END]) for s, p in zip(styles, pairs, strict=True)]


def filled(tokens: Sequence[int], length: int) -> np.ndarray:
    """Filled up to a length, or cut."""
    row = np.full(length, PAD, np.int32)
    row[: len(tokens)] = tokens[:length]
    return row


def shifted(target: jax.Array) -> jax.Array:
    """What the decoder sees: START, and all but the last token."""
    return jnp.pad(target, [(0, 0), (1, 0)], constant_values=START)[:, :-1]


def bucketed(
    encoded: Sequence[Encoded], buckets: Sequence[int], batch_tokens: int, seed: int
) -> tuple[train.Batches, int]:
    """Batches of pairs of similar length, {"source": [pairs, length], "target": ...}, and how many pairs are in them.

    A pair is in the first of the `buckets` (lengths) that holds it, and `batch_tokens` of its source make a batch: one
    compiled program for each bucket. What is shuffled in each epoch is the order of the batches.
    """
    groups: list[dict[str, np.ndarray]] = []
    used, low = 0, 0
    for length in buckets:
        pairs = [pair for pair in encoded if low < max(map(len, pair)) <= length]
        used, low = used + len(pairs), length
        if not pairs:
            continue
        size = batch_tokens // length
        order = np.random.default_rng((seed, length)).permutation(len(pairs))
        order = np.resize(order, (-(-len(pairs) // size), size))  # the last batch is filled up with the first pairs
        sides = {"source": 0, "target": 1}
        arrays = {key: np.array([filled(pair[side], length) for pair in pairs]) for key, side in sides.items()}
        groups += [{key: x[rows] for key, x in arrays.items()} for rows in order]
    if not groups:
        raise UserError(f"no pair has up to {buckets[-1]} tokens. Give a larger last one of --buckets.")
    return train.Batches(np.arange(len(groups)), 1, seed, lambda batch, rng: groups[batch[0]]), used
