"""Which phrase translates which (Koehn et al. 2003), and a sentence put together of what its phrases most often were."""

from __future__ import annotations

import collections
import gzip
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from experiments.parallel_texts import Pair
from experiments.word_alignment import align, as_text, words

LONGEST = 5  # words of an English phrase; a French one may have two more
UNKNOWN = -10.0  # the logarithm of the probability of a word that is in no phrase: it stays as it is

Phrase = tuple[str, str]  # English and French


class PhraseTable(NamedTuple):
    """by_words: the likeliest French word of each English one. counts: how often an English phrase was each of its French ones,
    most often first. totals: how often it was any."""

    by_words: dict[str, str]
    counts: dict[str, list[tuple[str, int]]]
    totals: dict[str, int]

    @classmethod
    def of(cls, english: Sequence[str], french: Sequence[str]) -> tuple[PhraseTable, dict[str, list[Phrase]]]:
        """Of sentences that translate each other; and the phrases that were counted, by the French sentence."""
        es, fs = [words(text.lower()) for text in english], [words(text) for text in french]
        there, back = align(es, fs), align(fs, es)
        found = [
            phrases(e, f, links) for e, f, links in zip(es, fs, map(symmetric, there.places, back.places), strict=True)
        ]
        counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for own in found:
            for e, f in own:
                counts[e][f] += 1
        ordered = {e: counter.most_common() for e, counter in counts.items()}
        return cls(there.table, ordered, {e: counter.total() for e, counter in counts.items()}), dict(
            zip(french, found, strict=True)
        )

    def save(self, file: pathlib.Path) -> None:
        """What is needed to translate on: the likeliest of each phrase."""
        table = self._replace(counts={e: fs[:1] for e, fs in self.counts.items()})
        with gzip.open(file, "wt", encoding="utf-8") as content:
            json.dump(table, content, ensure_ascii=False)

    @classmethod
    def load(cls, file: pathlib.Path) -> PhraseTable:
        with gzip.open(file, "rt", encoding="utf-8") as content:
            return cls(*json.load(content))

    def translate(self, sentence: str, own: Sequence[Phrase] = ()) -> str:
        """The likeliest division into phrases, each as it most often was, in the order of the original:

            max Π_k (n(e_k, f_k) - 1/2) / n(e_k)

        own: phrases of this sentence itself, which are not counted: what is learnt from is translated as if it were not there.
        """
        cased = words(sentence)
        lower, mine = [word.lower() for word in cased], collections.Counter(own)
        mine.update((e, "") for e, _ in own)
        best: list[tuple[float, int, str]] = [(0.0, 0, "")]
        for end in range(1, len(cased) + 1):
            options = []
            for start in range(max(0, end - LONGEST), end):
                score, french = self.likeliest(" ".join(lower[start:end]), mine)
                if end - start == 1 and not french:
                    score, french = UNKNOWN, cased[start]
                if french:
                    options.append((best[start][0] + score, start, french))
            best.append(max(options))
        end, parts = len(cased), []
        while end:
            _, end, french = best[end]
            parts.append(french)
        return as_text(" ".join(reversed(parts)).split(), sentence)

    def likeliest(self, english: str, mine: Mapping[Phrase, int]) -> tuple[float, str]:
        """The logarithm of its probability, and the French phrase; "" if there is none. `mine` are not counted."""
        best, french = 0, ""
        for f, n in self.counts.get(english, ()):
            own = mine.get((english, f), 0)
            if n - own > best:
                best, french = n - own, f
            if not own:  # those that follow are rarer
                break
        if not french:
            return 0.0, ""
        return math.log((best - 0.5) / (self.totals[english] - mine.get((english, ""), 0))), french


def symmetric(of_french: np.ndarray, of_english: np.ndarray) -> set[tuple[int, int]]:
    """Links of English to French words of which both directions say so, with neighbours of these in one direction, and those of
    words that have none ("grow-diag-final-and" of Koehn et al. 2005)."""
    there = {(int(i), j) for j, i in enumerate(of_french) if i >= 0}
    back = {(i, int(j)) for i, j in enumerate(of_english) if j >= 0}
    links = there & back
    linked = {i for i, _ in links}, {j for _, j in links}

    def add(link):
        links.add(link)
        linked[0].add(link[0])
        linked[1].add(link[1])

    pending = sorted(links)
    while pending:
        i, j = pending.pop()
        for link in [(a, b) for a in (i - 1, i, i + 1) for b in (j - 1, j, j + 1)]:
            if link in there | back and link not in links and not (link[0] in linked[0] and link[1] in linked[1]):
                add(link)
                pending.append(link)
    for link in sorted((there | back) - links):
        if link[0] not in linked[0] and link[1] not in linked[1]:
            add(link)
    return links


def phrases(english: Sequence[str], french: Sequence[str], links: Iterable[tuple[int, int]]) -> list[Phrase]:
    """All pairs of phrases in which no word is linked to one outside, and some to one inside (Koehn et al. 2003, section 3.1)."""
    of_english, of_french = ([[] for _ in side] for side in (english, french))
    for i, j in links:
        of_english[i].append(j)
        of_french[j].append(i)
    found = []
    for start in range(len(english)):
        for end in range(start + 1, min(len(english), start + LONGEST) + 1):
            there = [j for places in of_english[start:end] for j in places]
            if not there:
                continue
            first, last = min(there), max(there) + 1
            if any(not start <= i < end for places in of_french[first:last] for i in places):
                continue
            while True:  # with words at its ends that are linked to none
                stop = last
                while stop - first <= LONGEST + 2:
                    found.append((" ".join(english[start:end]), " ".join(french[first:stop])))
                    if stop == len(french) or of_french[stop]:
                        break
                    stop += 1
                first -= 1
                if first < 0 or of_french[first] or last - first > LONGEST + 2:
                    break
    return found


def first_translators(learnt: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """English and French: one English sentence, the first, for each French one of the first translator."""
    english = {pair.french: pair.english for pair in reversed(learnt) if pair.style == 0}
    return list(english.values()), list(english)


def glossed(
    pairs: Sequence[Pair], table: PhraseTable, counted: Mapping[str, Sequence[Phrase]] = MappingProxyType({})
) -> list[Pair]:
    """With the translation by phrases, as if the table had not `counted` those of the pair itself."""
    return [pair._replace(gloss=table.translate(pair.english, counted.get(pair.french, ()))) for pair in pairs]
