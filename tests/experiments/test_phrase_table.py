import math

import numpy as np
import pytest

from experiments.parallel_texts import Pair
from experiments.phrase_table import PhraseTable, first_translators, glossed, phrases, symmetric
from experiments.word_alignment import NULL_SHARE, SHARPNESS, _diagonal, align, word_by_word, words

ENGLISH = ["the house", "the book", "a book", "a house", "blue", "the house is blue"]
FRENCH = [
    "la maison",
    "la livre",
    "un livre",
    "un maison",
    "bleue",
    "la maison est bleue",
]  # with one gender less, for the articles


def test_em_finds_which_word_is_which():
    found = align([text.split() for text in ENGLISH], [text.split() for text in FRENCH], 20)
    assert found.table == {"the": "la", "house": "maison", "book": "livre", "a": "un", "is": "est", "blue": "bleue"}
    assert [places.tolist() for places in found.places] == [[0, 1]] * 4 + [[0], [0, 1, 2, 3]]
    assert word_by_word(found.table, "The house, the Ark.") == "La maison, la Ark."


def test_places_near_the_diagonal_are_likelier():
    share = _diagonal(2, 2)
    near, far = 1, math.exp(-SHARPNESS / 2)
    assert share[:, 0].tolist() == [NULL_SHARE] * 2 and share.sum(1) == pytest.approx(1)
    np.testing.assert_allclose(share[0, 1:], (1 - NULL_SHARE) * np.array([near, far]) / (near + far))
    assert _diagonal(0, 1).tolist() == [[NULL_SHARE]]


def test_a_link_of_one_direction_counts_beside_one_of_both():
    # Of French 0, 1, 2 come from English 0, 0, 2; of English 0, 1, 2 come from French 0, none, 2.
    assert symmetric(np.array([0, 0, 2]), np.array([0, -1, 2])) == {(0, 0), (0, 1), (2, 2)}
    assert symmetric(np.array([-1, -1]), np.array([1])) == {(0, 1)}  # of words that have no other


def test_phrases_are_those_without_a_link_to_the_outside():
    found = phrases(["the", "blue", "house"], ["la", "maison", "bleue"], [(0, 0), (1, 2), (2, 1)])
    singles = {("the", "la"), ("blue", "bleue"), ("house", "maison")}
    assert {*found} == singles | {("blue house", "maison bleue"), ("the blue house", "la maison bleue")}
    assert ("b", "x y") in phrases(["a", "b"], ["w", "x", "y"], [(0, 0), (1, 2)])  # x is linked to none


def test_a_sentence_is_translated_by_what_its_phrases_most_often_were():
    english, french = ["the blue house", *ENGLISH, "a horse"], ["la maison bleue", *FRENCH, "un cheval"]
    table, counted = PhraseTable.of(english * 2, french * 2)
    assert ("blue house", "maison bleue") in counted["la maison bleue"]
    assert table.translate("The blue house, a Book.") == "La maison bleue, un livre."


def test_a_sentence_that_is_learnt_from_is_translated_as_if_it_had_not_been_seen(tmp_path):
    table, counted = PhraseTable.of(ENGLISH, FRENCH)
    assert table.translate("the house is blue") == "la maison est bleue"
    assert table.translate("the house is blue", counted["la maison est bleue"]) == "la maison is bleue"
    pair = Pair("the house is blue", "la maison est bleue", "")
    assert [glossed([pair], table, there)[0].gloss for there in ({}, counted)] == [pair.french, "la maison is bleue"]
    table.save(tmp_path / "phrases.json.gz")
    assert PhraseTable.load(tmp_path / "phrases.json.gz").translate("the house is blue") == "la maison est bleue"


def test_the_table_is_of_the_first_translators():
    learnt = [
        Pair("a house", "une maison", ""),
        Pair("this home", "une maison", ""),
        Pair("a house", "ein Haus", "", 1),
    ]
    assert first_translators(learnt) == (["a house"], ["une maison"])


def test_words_keep_their_apostrophe():
    assert words("L'homme, qu'il") == ["L'", "homme", ",", "qu'", "il"]
