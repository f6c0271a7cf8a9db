"""Which word translates which: IBM model 1, by expectation maximization (Brown et al. 1993, section 4.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

NULL = ""  # the word of every English sentence from which come the French words that translate none


def translation_table(english: Sequence[str], french: Sequence[str], iterations: int = 5) -> dict[str, str]:
    """The likeliest French word of each English word, in small letters: argmax_f t(f | e), where

        t(f | e) ∝ Σ_sentences Σ_(places of e, f) t(f | e) / Σ_{e' in the sentence} t(f | e')

    (eqs. 12 and 13), `iterations` times from a uniform t. NULL is among the e', but not in the result.
    """
    pairs = [([NULL, *words(e.lower())], words(f)) for e, f in zip(english, french, strict=True)]
    e_ids = {word: i for i, word in enumerate(dict.fromkeys(w for e, _ in pairs for w in e))}
    f_ids = {word: i for i, word in enumerate(dict.fromkeys(w for _, f in pairs for w in f))}
    codes, places, start = [], [], 0  # of all pairs of words that share a sentence; one place for each French word
    for e, f in pairs:
        es, fs = np.array([e_ids[w] for w in e]), np.array([f_ids[w] for w in f], int)
        codes.append((es[None] * len(f_ids) + fs[:, None]).ravel())
        places.append(np.repeat(np.arange(start, start + len(fs), dtype=np.int32), len(es)))
        start += len(fs)
    kinds, kind = np.unique(np.concatenate(codes), return_inverse=True)
    kind, place = kind.astype(np.int32), np.concatenate(places)
    of_e = kinds // len(f_ids)
    t = np.ones(len(kinds))
    for _ in range(iterations):
        share = t[kind]
        share /= np.bincount(place, share)[place]
        count = np.bincount(kind, share)
        t = count / np.bincount(of_e, count)[of_e]
    order = np.lexsort((t, of_e))  # the last of each e is its likeliest
    best = order[np.append(np.flatnonzero(np.diff(of_e[order])), len(order) - 1)]
    e_words, f_words = list(e_ids), list(f_ids)
    table = {e_words[kinds[i] // len(f_ids)]: f_words[kinds[i] % len(f_ids)] for i in best}
    return {e: f for e, f in table.items() if e != NULL}


def word_by_word(table: Mapping[str, str], sentence: str) -> str:
    """Each word by the table, in the order of the original; a word that is not there stays as it is."""
    translated = " ".join(table.get(word.lower(), word) for word in words(sentence))
    text = re.sub(r" (?=[.,;:!?)])|(?<=[('’]) ", "", translated)
    return text[:1].upper() + text[1:] if sentence[:1].isupper() else text


def words(text: str) -> list[str]:
    """Words, with an apostrophe at their end (l', qu'), and marks."""
    return re.findall(r"\w+['’]?|[^\w\s]", text)
