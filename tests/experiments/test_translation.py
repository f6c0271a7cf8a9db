import contextlib
import json
import shutil
import sqlite3

import jax.numpy as jnp
import matplotlib.image
import pytest

pytest.importorskip("sacrebleu")
pytest.importorskip("tokenizers")

from experiments import translation
from experiments.harness import main
from experiments.parallel_texts import Pair
from experiments.tokens import bucketed, encode, filled, learn_tokenizer, shifted
from experiments.translation import PRESETS, Translation, experiment
from experiments.translation_report import quality
from experiments.translators import END, PAD, START
from fbp import train

SIZES = ["--features", 8, "--layers", 1, "--heads", 2, "--vocabulary", 300, "--buckets", 48, "--batch-tokens", 960]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "bible.db"
    numbers = {"one": "un", "two": "deux", "three": "trois", "four": "quatre", "five": "cinq"}
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE bible (bbName TEXT, bNumber INT, cNumber INT, vNumber INT, vText TEXT)")
        for i in range(300):
            a, b, c = (list(numbers)[i // n % 5] for n in (1, 5, 25))
            english, french = f"{a} and {b}, not {c} of {i}", f"{numbers[a]} et {numbers[b]}, pas {numbers[c]} de {i}"
            rows = [("4", 1, i // 3, i % 3, english), ("l", 1, i // 3, i % 3, french)]
            database.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", rows)
    return file


def run(*args):
    main(Translation, experiment, [str(arg) for arg in args], PRESETS)


@pytest.fixture(scope="module")
def whole(database, tmp_path_factory):
    """The folder of a run of two epochs in one piece."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run("--data-path", database, *SIZES, "--epochs", 2, "--out", folder)
    return folder


def test_a_run_leaves_its_result_pictures_and_translations(whole):
    result = json.loads((whole / "result.json").read_text())["metrics"]
    assert (
        result["bleu_signature"].startswith("nrefs:1|case:mixed") and result["gradient_max_relative_difference"] < 1e-4
    )
    assert result["baseline_bleu"] > 5 and result["baseline_chrf"] > 30
    assert {"bleu", "chrf"} <= {*result}
    for name in ("attention.png", "gradient_norms.png", "learning_curve.png"):
        assert matplotlib.image.imread(whole / name).std() > 0.01
    assert (whole / "translations.txt").read_text().count("French, by a person: ") > 5


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_nothing_had_been(whole, database, tmp_path, monkeypatch):
    class Stopping(train.Checkpoints):
        def save(self, state):
            super().save(state)
            raise KeyboardInterrupt

    folder = tmp_path / "stopped"
    monkeypatch.setattr(translation, "compare_with_jax", lambda *_: {})
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(train, "Checkpoints", Stopping)
        run("--data-path", database, *SIZES, "--epochs", 2, "--out", folder)
    assert not (folder / "result.json").exists()
    run("--resume", folder)
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (folder / "translations.txt").read_text() == (whole / "translations.txt").read_text()


def test_a_sentence_is_translated_by_a_trained_model_and_nothing_is_written(whole, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run("--translate", "one and two", "--checkpoint", whole)
    assert len(capsys.readouterr().out.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_run_without_a_checkpoint_translates_nothing(whole, tmp_path, capsys):
    for name in ("config.json", "phrases.json.gz", "tokenizer.json"):
        shutil.copy(whole / name, tmp_path)
    with pytest.raises(SystemExit, match="1"):
        run("--translate", "one", "--checkpoint", tmp_path)
    assert "the run was stopped before its first epoch ended. Go on with it by --resume." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--translate", "one"], "--translate needs a trained model: name the folder of its run with --checkpoint."),
        (["--translate", "one", "--checkpoint", "gone"], "--checkpoint gone: there is no gone/config.json"),
        (["--features", 12, "--heads", 4], "--features 12 is no multiple of twice --heads 4"),
        (["--buckets", 4, "--features", 16], "no pair has up to 4 tokens. Give a larger last one of --buckets."),
        (["--buckets", 72, 36], "--buckets (72, 36) are not rising numbers of tokens"),
        (
            ["--paraphrases"],
            "--paraphrases: a gloss is of one translator, whose phrases the others repeat. Give --no-gloss too.",
        ),
        (["--beams", 0], "--beams 0 (at least 1)"),
    ],
)
def test_bad_options_are_errors_in_one_paragraph(database, options, message, capsys, tmp_path):
    with pytest.raises(SystemExit, match="1"):
        run("--data-path", database, "--out", tmp_path / "run", *options)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_tokens_give_the_text_back_and_say_which_translator_is_wanted():
    pairs = [Pair("a house", "une maison à l'été", "", 2)] * 3
    tokenizer = learn_tokenizer(pairs, 300)
    source, target = encode(tokenizer, pairs)[0]
    assert source[0] == tokenizer.token_to_id("<2>") and source[-1] == target[-1] == END
    assert tokenizer.decode(target).strip() == "une maison à l'été"
    assert [tokenizer.token_to_id(t) for t in ("<pad>", "<s>", "</s>")] == [PAD, START, END]


def test_batches_are_of_pairs_of_similar_length():
    encoded = [([7] * n, [8] * (n // 2)) for n in (2, 3, 4, 5, 6, 9)]
    batches, used = bucketed(encoded, (4, 8), 8, seed=0)
    assert used == 5 and batches.steps_per_epoch == 2 + 2
    seen = [next(batches.from_step(i)) for i in range(4)]
    assert sorted(batch["source"].shape for batch in seen) == [(1, 8), (1, 8), (2, 4), (2, 4)]
    assert sorted({int((row != PAD).sum()) for batch in seen for row in batch["source"]}) == [2, 3, 4, 5, 6]


def test_the_decoder_sees_what_is_before():
    assert shifted(jnp.array([[5, 6, END, PAD]])).tolist() == [[START, 5, 6, END]]
    assert filled([5, 6, END], 4).tolist() == [5, 6, END, PAD] and filled([5, 6, END], 2).tolist() == [5, 6]


def test_a_gloss_comes_before_the_english():
    pairs = [Pair("a house", "une maison", "", 0, "un logis")] * 3
    tokenizer = learn_tokenizer(pairs, 300)
    _, *source = encode(tokenizer, pairs)[0][0]
    middle = source.index(END)
    assert [tokenizer.decode(part).strip() for part in (source[:middle], source[middle:])] == ["un logis", "a house"]
    batches, _ = bucketed(encode(tokenizer, pairs), (8, 16), 32, seed=0, parts=2)
    batch = next(batches.from_step(0))
    assert batch["source"].shape == (4, 16) and batch["target"].shape == (4, 8)


def test_quality_is_that_of_sacrebleu():
    texts = ["Dieu créa les cieux et la terre.", "Il vit que cela était bon."]
    assert quality(texts, texts, "baseline_") == pytest.approx({"baseline_bleu": 100, "baseline_chrf": 100})
    assert quality(["Dieu"] * 2, texts)["bleu"] < 1
