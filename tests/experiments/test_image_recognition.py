import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import types

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from experiments import datasets
from experiments.harness import Run, UserError, main
from experiments.image_recognition import ImageRecognition, augmentation, cat_or_not, experiment

PICTURES = ["confusion_matrix.png", "gradient_norms.png", "learning_curve.png", "predictions.png"]
OPTIONS = ["--data", "digits", "--model", "mlp", "--limit", "200"]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The folder of a run of one epoch."""
    return recognised(tmp_path_factory.mktemp("runs") / "short", "--epochs", 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of 20 epochs in one piece."""
    return recognised(tmp_path_factory.mktemp("runs") / "whole", "--epochs", 20)


def recognised(folder, *options, resume=False):
    args = ["--resume", folder] if resume else [*OPTIONS, "--out", folder, *options]
    main(ImageRecognition, experiment, [str(arg) for arg in args])
    return folder


def metrics_of(folder):
    return json.loads((folder / "result.json").read_text())["metrics"]


def assert_same_run(a, b):
    assert metrics_of(a) == metrics_of(b)
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


def test_a_run_leaves_its_result_pictures_and_metrics(short):
    metrics = metrics_of(short)
    assert {*metrics} == {"test_accuracy", "baseline_test_accuracy", "gradient_max_relative_difference"}
    assert 0.1 < metrics["baseline_test_accuracy"] < 1
    assert 0 < metrics["test_accuracy"] < 1 and metrics["gradient_max_relative_difference"] < 1e-5
    records = [json.loads(line) for line in (short / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [3, 3]
    assert records[-1]["test_accuracy"] == metrics["test_accuracy"]
    assert sorted(path.name for path in short.glob("*.png")) == PICTURES
    assert all(matplotlib.image.imread(short / name).std() > 0.01 for name in PICTURES)


def test_bfloat16_gives_about_the_same(tmp_path, short, capsys):
    folder = recognised(tmp_path / "run", "--epochs", 1, "--precision", "bfloat16")
    assert capsys.readouterr().out.endswith(f"{folder}/result.json\n")
    exact, rounded = (json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in (short, folder))
    assert 0 < abs(exact["loss"] - rounded["loss"]) < 0.05


def test_it_learns(whole):
    assert metrics_of(whole)["test_accuracy"] > 0.8


def test_the_same_seed_gives_the_same_numbers(tmp_path, short):
    assert_same_run(recognised(tmp_path / "same", "--epochs", 1), short)
    other = recognised(tmp_path / "other", "--epochs", 1, "--seed", 1)
    assert (other / "metrics.jsonl").read_bytes() != (short / "metrics.jsonl").read_bytes()


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, whole):
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "experiments.image_recognition", *OPTIONS, "--epochs", "20", "--out", str(folder)]
    root = pathlib.Path(__file__).parents[2]
    env = os.environ | {
        "PYTHONPATH": str(root),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }  # compiled as here (conftest.py)
    with subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, env=env) as run:
        try:
            until = time.monotonic() + 120
            while not any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
                assert run.poll() is None and time.monotonic() < until
                time.sleep(0.01)
        finally:
            run.kill()
    assert not (folder / "result.json").exists()
    assert len((folder / "metrics.jsonl").read_text()) < len((whole / "metrics.jsonl").read_text())
    recognised(folder, resume=True)
    assert_same_run(folder, whole)


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path, short):
    config = ImageRecognition(out=tmp_path, data="digits", model="mlp", limit=200, epochs=1)
    log = Run("image_recognition", config).path("metrics.jsonl")
    log.write_text('{"step": 3, "loss": 2.0}\n{"step": 3, "los')
    assert_same_run(recognised(tmp_path, resume=True), short)


def test_a_checkpoint_of_another_model_is_an_error_in_one_paragraph(tmp_path, short, capsys):
    folder = shutil.copytree(short, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model": "conv"}))
    with pytest.raises(SystemExit, match="1"):
        recognised(folder, resume=True)
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: the checkpoint of step 3 in {folder}/checkpoints is of another model or optimizer: "
    )
    assert "model_state/batch_norm_0/mean is missing; " in error
    assert error.endswith("Resume with the configuration that the run was started with, or start a new run.\n")
    assert error.count("\n") == 1


def test_data_that_is_missing_is_an_error_in_one_paragraph(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        recognised(tmp_path / "run", "--data", "fashion-mnist", "--data-folder", tmp_path / "gone")
    error = capsys.readouterr().err
    assert error.startswith(f"error: there is no folder {tmp_path}/gone. Install") and error.count("\n") == 1


def test_augmentation_flips_and_shifts_by_up_to_two_pixels():
    transform = augmentation(ImageRecognition())
    x = np.zeros((200, 9, 9, 1), np.float32)
    x[:, 4, 3] = 1
    batch = transform({"x": x, "y": np.arange(200)}, np.random.default_rng(0))
    assert batch["x"].shape == x.shape and batch["x"].dtype == x.dtype
    assert (batch["x"].sum((1, 2, 3)) == 1).all() and (batch["y"] == np.arange(200)).all()
    _, rows, columns, _ = np.nonzero(batch["x"])
    assert {*rows.tolist()} == {2, 3, 4, 5, 6}
    assert {*columns.tolist()} == {1, 2, 3, 4, 5, 6, 7}


@pytest.mark.parametrize("options", [{"augment": False}, {"data": "digits"}])
def test_some_data_is_not_augmented(options):
    assert augmentation(ImageRecognition(**options)) is None


def test_always_saying_no_is_half_right_about_cats():
    is_cat = np.array([True, False, False, False])
    assert cat_or_not(np.zeros(4, bool), is_cat) == {"cat_balanced_accuracy": 0.5, "cat_recall": 0.0}
    assert cat_or_not(is_cat, is_cat) == {"cat_balanced_accuracy": 1.0, "cat_recall": 1.0}


def write_images(folder, count=12):
    """Bright and dark images in a folder each, of several sizes, with one file that is none."""
    rng = np.random.default_rng(0)
    for name, level in ("bright", 200), ("dark", 40):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(level + rng.normal(0, 15, (20 + i, 24)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    (folder / "dark" / "notes.txt").write_text("not an image")
    (folder / "dark" / "twin.png").write_bytes((folder / "dark" / "0.png").read_bytes())


def test_it_learns_from_a_folder_of_images_and_says_what_is_on_others(tmp_path, capsys):
    write_images(tmp_path / "images")
    options = ["--data", "folder", "--data-folder", tmp_path / "images", "--size", "16", "--model", "mlp"]
    options += ["--epochs", "60", "--batch-size", "8", "--no-augment", "--out", tmp_path / "run"]
    main(ImageRecognition, experiment, [str(option) for option in options])
    out = capsys.readouterr().out
    assert f"left out: {tmp_path}/images/dark/notes.txt (cannot identify image file)" in out
    assert "folder: 20 training and 4 test images" in out
    assert metrics_of(tmp_path / "run")["test_accuracy"] == 1
    shown = [str(tmp_path / "images" / name / "3.png") for name in ("bright", "dark")]
    main(ImageRecognition, experiment, ["--predict", *shown, "--checkpoint", str(tmp_path / "run")])
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split()[0] for line in said] == ["bright", "dark"]


@pytest.mark.parametrize(
    "options, says",
    [
        (["--predict", "nothing.png", "--checkpoint", "gone"], "--checkpoint gone: there is no gone/config.json"),
        (
            ["--predict", "nothing.png"],
            "--predict needs a trained model: name the folder of its run with --checkpoint.",
        ),
        (["--data", "folder"], "--data folder needs --data-folder with a folder of images for each class, not None."),
        (["--data", "folder", "--data-folder", "."], "Make one for each of at least two classes of images."),
    ],
)
def test_what_is_missing_is_said(options, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(ImageRecognition, experiment, options)
    assert says in capsys.readouterr().err


def test_cifar_10_is_read_where_it_is_stored_and_never_fetched(monkeypatch, capsys):
    class Rows(list):
        column_names = ("img", "label")

    def load_dataset(name, part, split):
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        if name != "stored":
            raise ValueError("not cached")
        return Rows({"img": np.full((32, 32, 3), i, np.uint8), "label": i % 10} for i in range(20))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    images = datasets.load("cifar-10", pathlib.Path("stored"))
    assert images.train_x.shape == (20, 32, 32, 3) and images.test_y[11] == 1 and len(images.classes) == 10
    with pytest.raises(UserError, match=r"uoft-cs/cifar10 is not on this machine.*Nothing is downloaded unasked"):
        datasets.load("cifar-10", None)
