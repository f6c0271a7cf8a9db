"""What a language model learns from: texts that are on this machine, and how they are cut into tokens and windows."""

from __future__ import annotations

import hashlib
import pathlib
import sysconfig
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments import texts
from experiments.harness import UserError
from fbp import train

END = "\0"  # of each document, so that none runs into the next; it counts as a byte of it


class Corpus(NamedTuple):
    """Documents one after the other, and those that are held out. Which ones is fixed by a hash of each one's name."""

    train: str
    held_out: str


def load(name: str, folder: pathlib.Path | None = None) -> Corpus:
    return split(standard_library(folder) if name == "python" else reviews())


def split(documents: dict[str, str], held_out: int = 24) -> Corpus:
    """One document in `held_out` is held out."""
    parts: tuple[list[str], list[str]] = [], []
    for name, text in sorted(documents.items()):
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        parts[number % held_out == 0].append(text + END)
    if not all(parts):
        raise UserError(
            f"of {len(documents)} documents {len(parts[1])} would be held out and {len(parts[0])} be learned from: that is "
            "decided by the hashes of their names. Give more documents."
        )
    return Corpus(*map("".join, parts))


def standard_library(folder: pathlib.Path | None = None) -> dict[str, str]:
    """The source of the Python that runs this, or of another `folder`: without tests, what was installed, and what was
    made by a program (tables of character sets, which are near copies of one another; the manual as strings)."""
    folder = folder or pathlib.Path(sysconfig.get_path("stdlib"))
    aside = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data"}
    documents = {}
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if not aside & {*name.parts} and not name.name.startswith("_sysconfigdata"):  # which is of one machine
            try:
                documents[name.as_posix()] = path.read_bytes().decode()
            except (UnicodeDecodeError, OSError):
                continue
    if not documents:
        raise UserError(f"{folder}: there are no Python files. Name a folder of source with --data-folder.")
    return documents


def reviews() -> dict[str, str]:
    """Reviews of films."""
    return {review.text: review.text for review in texts.reviews()}


# ---------------------------------------------------------------------------------------------------------- tokens


class Tokenizer(NamedTuple):
    """Text as numbers in [0, size), and back: decode(encode(text)) == text."""

    size: int
    encode: Callable[[str], np.ndarray]
    decode: Callable[[Sequence[int]], str]


BYTES = Tokenizer(
    256,
    lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.int32),
    lambda ids: bytes(map(int, ids)).decode(errors="replace"),
)


def byte_pairs(path: pathlib.Path, size: int, text: str | None = None) -> Tokenizer:
    """Byte pairs (Sennrich et al. 2016): those of the file, which are learned from the text if it is not there."""
    try:
        import tokenizers  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "byte pairs need a package. Install it with: pip install tokenizers==0.23.3, or use --tokens bytes."
        ) from None
    if text is None and not path.exists():
        raise UserError(f"there are no byte pairs in {path}. Name the folder of a run that learned some.")
    if text is not None and not path.exists():
        pairs = tokenizers.Tokenizer(tokenizers.models.BPE())
        pairs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        pairs.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        pairs.train_from_iterator(text.split(END), trainer)
        pairs.save(str(path))
    pairs = tokenizers.Tokenizer.from_file(str(path))
    encode = lambda text: np.array(pairs.encode(text).ids, np.int32)
    return Tokenizer(
        pairs.get_vocab_size(), encode, lambda ids: pairs.decode([*map(int, ids)], skip_special_tokens=False)
    )


def sampled(ids: np.ndarray, context: int, batch_size: int, steps: int, seed: int) -> train.Batches:
    """Windows of the text from places drawn at random, {"tokens": [batch, context + 1]}; an epoch has `steps` batches."""

    def transform(batch, rng):
        starts = rng.integers(0, len(ids) - context, len(batch["tokens"]))
        return {"tokens": ids[starts[:, None] + np.arange(context + 1)]}

    return train.Batches({"tokens": np.arange(steps * batch_size)}, batch_size, seed, transform)


def windows(ids: np.ndarray, context: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows [n, context + 1] in steps of `stride` <= context, filled up at the end; and which of their tokens but the
    first no earlier window has told, [n, context]: every token but the first of all is told once, and after the beginning
    with at least context - stride before it."""
    starts = np.arange(0, max(1, len(ids) - 1 - context + stride), stride)
    places = starts[:, None] + np.arange(context + 1)
    fresh = (places[:, 1:] > np.append(0, starts[:-1] + context)[:, None]) & (places[:, 1:] < len(ids))
    return ids[np.minimum(places, len(ids) - 1)], fresh
