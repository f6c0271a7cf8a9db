"""Texts as bags of phrases, weighed by naive Bayes: sparse vectors and a linear model of them."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from experiments.texts import SOURCES, Review
from fbp import nn


class Bags(NamedTuple):
    """Reviews as sparse vectors: numbers of phrases and their values, 0 where there are no more, [n, longest]."""

    phrases: np.ndarray
    values: np.ndarray
    source: np.ndarray
    label: np.ndarray


def words(text: str) -> list[str]:
    """In small letters, marks among them."""
    return re.findall(r"[\w']+|[!?.,;]", text.replace("<br />", " ").lower())


def phrases(text: str, longest: int) -> Iterator[str]:
    """All runs of one to `longest` words."""
    said = words(text)
    return (" ".join(said[i : i + n]) for n in range(1, longest + 1) for i in range(len(said) - n + 1))


def log_count_ratios(counts: Any, labels: np.ndarray) -> np.ndarray:
    """r = log (p / ‖p‖₁) / (q / ‖q‖₁), p and q one more than the reviews for and against with each phrase (Wang & Manning
    2012, section 2.1): what a phrase says, by naive Bayes."""
    p, q = (1 + np.asarray(counts[labels == label].sum(0)).ravel() for label in (1, 0))
    return np.log((p / p.sum()) / (q / q.sum())).astype(np.float32)


def as_bags(counts: Any, ratios: np.ndarray, longest: int, reviews: Sequence[Review]) -> Bags:
    """Each phrase that a review has is r / ‖r‖₂, over those of the review; if they are too many, the largest |r| are kept."""
    phrases, values = np.zeros((len(reviews), longest), np.int32), np.zeros((len(reviews), longest), np.float32)
    for i, (start, end) in enumerate(zip(counts.indptr, counts.indptr[1:], strict=False)):
        kept = counts.indices[start:end]
        kept = kept[np.argsort(-np.abs(ratios[kept]), kind="stable")[:longest]]
        phrases[i, : len(kept)] = kept
        values[i, : len(kept)] = ratios[kept] / max(1e-6, np.linalg.norm(ratios[kept]))
    source = [list(SOURCES.values()).index(review.source) for review in reviews]
    return Bags(phrases, values, np.array(source, np.int32), np.array([review.label for review in reviews], np.int32))


def bag_model(n: int) -> nn.Layer:
    """logit = Σ_f x_f w_{s,f} + b_s, with weights for each source s, from 0 on: logistic regression of a sparse x, as a table
    of which a review looks up its rows."""
    table = nn.embed(n, len(SOURCES), embedding_init=initializers.zeros)

    def init(rng, phrases, values, source):
        return {"phrases": table.init(rng, phrases)[0], "bias": jnp.zeros(len(SOURCES))}, {}

    def apply(params, state, phrases, values, source):
        weights, _ = table.apply(params["phrases"], {}, phrases)
        sums = jnp.einsum("bf,bfs->bs", values, weights) + params["bias"]
        return jnp.take_along_axis(sums, source[:, None], 1)[:, 0], state

    return nn.Layer("bag_model", init, apply)


def word_shares(text: str, longest: int, adds: Mapping[str, float]) -> list[tuple[str, float]]:
    """What each word adds: an equal part of what each phrase `adds` in which it is."""
    said = words(text)
    runs = [(i, i + n) for n in range(1, longest + 1) for i in range(len(said) - n + 1)]
    times = collections.Counter(" ".join(said[i:j]) for i, j in runs)
    total = np.zeros(len(said))
    for i, j in runs:
        phrase = " ".join(said[i:j])
        total[i:j] += adds.get(phrase, 0) / times[phrase] / (j - i)
    return list(zip(said, total.tolist(), strict=True))
