"""Which word translates which: IBM model 2, with places along the diagonal (Brown et al. 1993; Dyer et al. 2013)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

NULL = ""  # the word of every English sentence from which come the French words that translate none
NULL_SHARE, SHARPNESS = 0.08, 8.0  # the prior of NULL; how much likelier a place near the diagonal is


class Alignment(NamedTuple):
    """table: the likeliest French word of each English one. places: for each sentence, the place of the English word that
    each of its French words comes from; -1 for none."""

    table: dict[str, str]
    places: list[np.ndarray]


def align(english: Sequence[Sequence[str]], french: Sequence[Sequence[str]], iterations: int = 5) -> Alignment:
    """Of sentences as words: argmax_f t(f | e), and argmax_i δ(i | j) t(f_j | e_i) for each j, where

        t(f | e) ∝ Σ_sentences Σ_(places i, j of e, f) δ(i | j) t(f | e) / Σ_i' δ(i' | j) t(f | e_i')
        δ(i | j) ∝ exp(-SHARPNESS |i / m - j / n|) in a sentence of m English and n French words; NULL_SHARE of NULL

    by expectation maximization from a uniform t (Dyer et al. 2013, section 2).
    """
    e_ids = {word: i for i, word in enumerate(dict.fromkeys([NULL, *(w for words in english for w in words)]))}
    f_ids = {word: i for i, word in enumerate(dict.fromkeys(w for words in french for w in words))}
    # Of all pairs of words that share a sentence: which these are, δ, and one number for each French word in its place.
    codes, shares, rows = [], [], 0
    places: list[np.ndarray] = []
    for es, fs in zip(english, french, strict=True):
        e, f = np.array([e_ids[w] for w in (NULL, *es)]), np.array([f_ids[w] for w in fs], int)
        codes.append((e[None] * len(f_ids) + f[:, None]).ravel())
        places.append(np.repeat(np.arange(rows, rows + len(f), dtype=np.int32), len(e)))
        shares.append(_diagonal(len(es), len(fs)).ravel())
        rows += len(f)
    kinds, kind = np.unique(np.concatenate(codes), return_inverse=True)
    kind, place, share = kind.astype(np.int32), np.concatenate(places), np.concatenate(shares)
    of_e = kinds // len(f_ids)
    t = np.ones(len(kinds))
    for _ in range(iterations):
        part = t[kind] * share
        part /= np.bincount(place, part)[place]
        count = np.bincount(kind, part)
        t = count / np.bincount(of_e, count)[of_e]
    order = np.lexsort((t, of_e))  # the last of each e is its likeliest
    best = order[np.append(np.flatnonzero(np.diff(of_e[order])), len(order) - 1)]
    e_words, f_words = list(e_ids), list(f_ids)
    table = {e_words[kinds[i] // len(f_ids)]: f_words[kinds[i] % len(f_ids)] for i in best}
    parts = np.split(t[kind] * share, np.cumsum([len(x) for x in shares])[:-1])
    likeliest = [
        part.reshape(len(f), len(e) + 1).argmax(1) - 1 for part, e, f in zip(parts, english, french, strict=True)
    ]
    return Alignment({e: f for e, f in table.items() if e != NULL}, likeliest)


def _diagonal(english: int, french: int) -> np.ndarray:
    """δ(i | j): [French, 1 + English] words."""
    distance = np.arange(1, french + 1)[:, None] / max(french, 1) - np.arange(1, english + 1) / max(english, 1)
    near = np.exp(-SHARPNESS * np.abs(distance))
    near *= (1 - NULL_SHARE) / near.sum(1, keepdims=True) if english else 1
    return np.concatenate([np.full((french, 1), NULL_SHARE), near], 1)


def word_by_word(table: Mapping[str, str], sentence: str) -> str:
    """Each word by the table, in the order of the original; a word that is not there stays as it is."""
    return as_text([table.get(word.lower(), word) for word in words(sentence)], sentence)


def as_text(translated: Sequence[str], sentence: str) -> str:
    """French words as a text, which begins with a capital letter if the English sentence does."""
    text = re.sub(r" (?=[.,;:!?)])|(?<=[('’]) ", "", " ".join(translated))
    return text[:1].upper() + text[1:] if sentence[:1].isupper() else text


def words(text: str) -> list[str]:
    """Words, with an apostrophe at their end (l', qu'), and marks."""
    return re.findall(r"\w+['’]?|[^\w\s]", text)
