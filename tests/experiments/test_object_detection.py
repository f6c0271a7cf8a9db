import gzip
import json
import struct
import sys

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

import fbp
from experiments import object_detection
from experiments.boxes import generalized_iou, intersection, iou, keep_best, mean_average_precision
from experiments.datasets import digits
from experiments.fcos import STRIDE, assigned, candidates, centredness, detection_loss, points
from experiments.harness import main
from experiments.object_detection import ObjectDetection, experiment
from experiments.scenes import CONTRAST, MOST, make_scenes, place
from experiments.sliding_window import WINDOW, looks, window_examples, windows

A, B = np.array([[0.0, 0, 4, 2]]), np.array([[2.0, 0, 6, 2], [10, 0, 12, 2], [0, 0, 4, 2]])


def test_overlap():
    assert intersection(A, B).tolist() == [[4, 0, 8]]
    assert iou(A, B).tolist() == [[4 / 12, 0, 1]]


def test_generalized_iou_draws_boxes_that_are_apart_together():
    np.testing.assert_allclose(generalized_iou(jnp.array(A), jnp.array(B)), [1 / 3, 0 - (24 - 12) / 24, 1], rtol=1e-6)
    towards = fbp.grad(lambda box: generalized_iou(box, jnp.array(B[1])))(jnp.array(A[0]))
    assert towards[2] > 0  # the right side, to the right


def test_of_overlapping_boxes_of_a_label_the_best_is_kept():
    found = np.array([[0, 0, 4, 4, 0.5, 1], [0, 0, 4, 5, 0.9, 1], [0, 0, 4, 4, 0.3, 2], [8, 8, 9, 9, 0.2, 1]], float)
    assert keep_best(found, 0.5)[:, 4].tolist() == [0.9, 0.3, 0.2]
    assert keep_best(found, 0.5, any_label=True)[:, 4].tolist() == [0.9, 0.2]
    assert len(keep_best(found, 0.9)) == 4
    assert keep_best(found[:0], 0.5).shape == (0, 6)


def test_average_precision_of_known_answers():
    pytest.importorskip("pycocotools")
    truth = [np.array([[0, 0, 10, 10, 0], [20, 20, 30, 30, 1]]), np.array([[0, 0, 10, 10, 0]])]
    right = [np.c_[rows[:, :4], np.full(len(rows), 0.9), rows[:, 4]] for rows in truth]
    assert mean_average_precision(truth, right, 3)[0] == pytest.approx({"map_50": 1, "map_50_95": 1})
    missed = [
        right[0],
        right[1][:0],
    ]  # one of the two of class 0: precision 1 up to recall 0.5, 51 of COCO's 101 points
    scores, by_class = mean_average_precision(truth, missed, 3)
    assert by_class[:2] == pytest.approx([51 / 101, 1]) and np.isnan(by_class[2])
    assert scores["map_50"] == pytest.approx((51 / 101 + 1) / 2)
    assert mean_average_precision(truth, [rows[:0] for rows in right], 3)[0] == {"map_50": 0, "map_50_95": 0}


def test_a_point_finds_the_smallest_object_whose_centre_is_near():
    where = points(32)
    assert where[:2].tolist() == [[2, 2], [6, 2]] and len(where) == (32 // STRIDE) ** 2
    boxes = jnp.array([[0.0, 0, 32, 32], [14, 14, 22, 22], [0, 0, 0, 0]])
    wanted, labels = assigned(where, boxes, jnp.array([3, 5, -1]))
    by_place = {tuple(at): int(label) for at, label in zip(where.tolist(), labels, strict=True)}
    assert (
        by_place[18, 18] == 5 and by_place[14, 14] == 3 and by_place[2, 2] == -1
    )  # of 3, (14, 14) is near its centre only
    assert wanted[where.tolist().index([18, 18])].tolist() == [14, 14, 22, 22]


def test_centredness_is_one_at_the_centre_and_none_at_a_side():
    where = np.array([[4.0, 4], [2, 4], [0, 4]], np.float32)
    box = jnp.array([[0.0, 0, 8, 8]])
    np.testing.assert_allclose(centredness(where, box), [1, np.sqrt(2 / 6), 0], rtol=1e-6)


def test_the_right_answers_have_next_to_no_loss_and_are_read_back():
    where, boxes, labels = points(32), jnp.array([[[4.0, 8, 20, 28]]]), jnp.array([[1]])
    wanted, found = jax.vmap(assigned, (None, 0, 0))(where, boxes, labels)
    sides = jnp.concatenate([where - wanted[..., :2], wanted[..., 2:] - where], -1)
    logits = jnp.where(jax.nn.one_hot(found, 3) > 0, 20.0, -20.0)
    share = jnp.clip(centredness(where, wanted), 1e-6, 1 - 1e-6)
    central = jnp.log(share / (1 - share))
    y = jnp.concatenate([logits, central[..., None], jnp.log(jnp.maximum(sides, 1e-3) / STRIDE)], -1).reshape(
        1, 8, 8, 8
    )
    entropy = jnp.sum(jnp.where(found >= 0, -share * jnp.log(share) - (1 - share) * jnp.log(1 - share), 0))
    expected = float(entropy) / int(jnp.sum(found >= 0))
    np.testing.assert_allclose(detection_loss(y, where, boxes, labels), expected, rtol=1e-3)
    assert detection_loss(y.at[..., 1].multiply(-1), where, boxes, labels) > expected + 1
    best = candidates(y, where, 4)[0]
    np.testing.assert_allclose(best[0, :4], [4, 8, 20, 28], rtol=1e-4)
    assert best[0, 5] == 1 and best[0, 4] >= best[1, 4]


def test_scenes_have_one_to_five_objects_inside():
    pictures = np.ones((3, 8, 8, 1), np.float32)
    scenes = make_scenes(30, pictures, np.array([4, 5, 6]), 64, np.random.default_rng(0))
    assert scenes.x.shape == (30, 64, 64, 1) and scenes.x.min() >= 0 and scenes.x.max() <= 1
    counts = (scenes.labels >= 0).sum(1)
    assert counts.min() >= 1 and counts.max() <= MOST and len({*counts.tolist()}) > 2
    assert {*scenes.labels.ravel().tolist()} == {-1, 4, 5, 6}
    sides = scenes.boxes[scenes.labels >= 0][:, 2:] - scenes.boxes[scenes.labels >= 0][:, :2]
    assert sides.max() <= 34 and sides.min() >= 8


@pytest.mark.parametrize("around", [0.1, 0.5, 0.9])
def test_an_object_stands_out_from_the_ground_under_it(around):
    for seed in range(20):
        under = np.full((6, 8), around)
        values = np.pad(np.ones((4, 6), np.float32), 1)
        place(values, under, np.random.default_rng(seed))
        assert (under[0] == around).all() and np.ptp(under[1:-1, 1:-1]) == 0
        assert abs(under[2, 2] - around) >= CONTRAST and 0 <= under[2, 2] <= 1


def test_windows_are_inside_and_show_what_is_under_them():
    boxes = windows(64)
    assert boxes.min() >= 0 and boxes.max() <= 64 and len(np.unique(boxes, axis=0)) == len(boxes)
    ramp = np.tile(np.arange(64.0)[None, :, None], (64, 1, 1))
    seen = looks(ramp, np.array([[8.0, 0, 32, 24], [0, 0, 48, 12]]))
    assert seen[0, 3, :, 0].tolist() == list(range(8, 32)) and seen[1, 0, :, 0].tolist() == list(range(1, 48, 2))
    images = digits()
    scenes = make_scenes(10, images.train_x, images.train_y, 64, np.random.default_rng(0))
    x, y = window_examples(scenes, 10, np.random.default_rng(0))
    assert x.shape == (len(y), WINDOW, WINDOW, 1) and 0.6 < np.mean(y == 10) <= 2 / 3


def write_idx(path, array):
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def folder(tmp_path):
    """A few pictures in the files of Fashion-MNIST."""
    images = digits()
    for kind, x, y in ("train", images.train_x, images.train_y), ("t10k", images.test_x, images.test_y):
        write_idx(tmp_path / f"{kind}-images-idx3-ubyte.gz", (255 * x[:40, ..., 0]).astype(np.uint8))
        write_idx(tmp_path / f"{kind}-labels-idx1-ubyte.gz", y[:40].astype(np.uint8))
    return tmp_path


SIZES = {"size": 48, "width": 4, "epochs": 1, "scenes": 16, "batch-size": 8, "test-scenes": 6}


def found(*options):
    main(ObjectDetection, experiment, [str(option) for option in options])


def test_a_run_that_was_stopped_goes_on_and_leaves_its_files(folder, monkeypatch, capsys):
    pytest.importorskip("pycocotools")
    run = folder / "run"
    sizes = [word for name, size in SIZES.items() for word in (f"--{name}", size)]
    with monkeypatch.context() as stopped, pytest.raises(SystemExit, match="130"):
        stopped.setattr(object_detection, "sliding_window", interrupted)
        stopped.setattr(object_detection, "compare_with_jax", lambda *_: {})  # it takes the longest, and comes again
        found("--data", "fashion-mnist", "--data-folder", folder, "--out", run, *sizes)
    log = (run / "metrics_detector.jsonl").read_text()
    found("--resume", run)
    assert "resumed at step 2 of 2" in capsys.readouterr().out
    assert (run / "metrics_detector.jsonl").read_text() == log
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert metrics.pop("gradient_max_relative_difference") < 1e-4
    assert {*metrics} == {"map_50", "map_50_95", "baseline_map_50", "baseline_map_50_95"}
    for name in "classes", "detector", "learning_curve", "sliding_window":
        assert matplotlib.image.imread(run / f"{name}.png").std() > 0.01


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", 50], "--size 50 is not a multiple of 16"),
        (["--width", 0, "--size", 16], "--width 0 (at least 1), --size 16 (at least 48)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit, match="1"):
        found(*options, "--out", tmp_path / "run")
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_missing_library_is_missed_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(SystemExit, match="1"):
        found("--out", tmp_path / "run")
    error = capsys.readouterr().err
    assert "pip install -r experiments/requirements/object_detection.txt" in error and error.count("\n") == 1
