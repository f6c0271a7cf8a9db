import jax
import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from fbp import nn, report
from fbp.report import figures

NAMES = ["cat", "dog", "bird"]


def picture(path):
    image = matplotlib.image.imread(path)[..., :3]
    assert min(image.shape[:2]) > 100
    assert image.std() > 0.01, "blank"
    return image


def share_of(image, color):
    return (np.abs(image - np.array(matplotlib.colors.to_rgb(color))) < 0.02).all(-1).mean()


@pytest.mark.parametrize(
    "test", [{}, {"test_accuracy": {}}, {"accuracy": {4: 0.3, 8: 0.5}, "cat_recall": {8: 0.1}}], ids=len
)
def test_learning_curve(tmp_path, test):
    report.learning_curve(tmp_path / "a.png", {2: 2.3, 4: 1.2, 8: 0.4}, test)
    image = picture(tmp_path / "a.png")
    assert share_of(image, "#0072B2") > 1e-3
    assert (share_of(image, "#D55E00") > 1e-3) == bool(test.get("accuracy"))


@pytest.mark.parametrize("value", [1.0, 0.0, np.inf, np.nan])
def test_gradient_flow(tmp_path, value):
    norms = {step: {"a": 10.0**-step, "b": value} for step in range(1, 9)}
    report.gradient_flow(str(tmp_path / "a.png"), norms, ["b", "a"])
    picture(tmp_path / "a.png")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradient_flow_of_one_step(tmp_path, value):
    report.gradient_flow(tmp_path / "a.png", {20: {"a": value}}, ["a"])
    picture(tmp_path / "a.png")


def test_parameters_are_named_from_input_to_output():
    layer = nn.sequential(nn.dense(3), nn.batch_norm(), nn.relu(), nn.residual(nn.dense(3)), nn.dense(2))
    params, _ = layer.init(jax.random.key(0), np.ones((1, 4), np.float32))
    names = report.parameter_names(params)
    assert [name.split("/")[0] for name in names] == [
        "dense_0", "dense_0", "batch_norm_0", "batch_norm_0", "residual_0", "residual_0", "dense_1", "dense_1",
    ]  # fmt: skip
    in_jax = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]
    assert sorted(names) == sorted(in_jax) and names != in_jax


@pytest.mark.parametrize("count", [1, 8, 11])
def test_image_page(tmp_path, count):
    images = np.random.default_rng(0).random((count, 8, 8, 1))
    said = ["cat", "dog", *["cat"] * 9][:count]
    report.image_page(tmp_path / "a.png", images, ["cat"] * count, said, [0.9] * count, "test images")
    image = picture(tmp_path / "a.png")
    assert (share_of(image, "#D55E00") > 0) == ("dog" in said)


def test_confusion_matrix(tmp_path):
    truth, predicted = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1])
    report.confusion_matrix(tmp_path / "a.png", truth, predicted, NAMES, "percent")
    image = picture(tmp_path / "a.png")
    shades = [matplotlib.colormaps["Blues"](percent / 100)[:3] for percent in (100, 200 / 3, 100 / 3, 0)]
    full, most, some, none = (share_of(image, shade) for shade in shades)
    assert full > 0.02 and most > 0.02 and some > 0.02 and none > 4 * full


def test_a_class_without_examples_is_no_error(tmp_path):
    report.confusion_matrix(tmp_path / "a.png", np.array([1]), np.array([2]), NAMES, "percent")
    picture(tmp_path / "a.png")


def test_attention_maps(tmp_path):
    weights = np.eye(3, 5)
    report.attention_maps(tmp_path / "a.png", [(weights, "abc", "vwxyz"), (weights[:, :2], "abc", "vw")], "looks")
    image, darkest = picture(tmp_path / "a.png"), matplotlib.colormaps["Blues"](1.0)[:3]
    assert 0.02 < share_of(image, darkest) < 0.3


def test_coloured_words(tmp_path):
    texts = {"for": [("good", 2.0), ("plain", 0.0)] * 20, "against": [("bad", -0.1)], "empty": [], "none": [("a", 0.0)]}
    report.coloured_words(tmp_path / "a.png", texts, "words")
    image = picture(tmp_path / "a.png")
    assert share_of(image, figures.BLUE) > 10 * share_of(image, figures.ORANGE) > 0


def test_growth_curves(tmp_path):
    """Another variant in one panel than in the other, and one size only."""
    panels = {
        "layers": {"time": {"ours": {2: 0.1, 4: 0.2}, "theirs": {2: 0.3, 4: 0.9}}},
        "length": {"time": {"ours": {8: 1e-3}, "naive": {8: 2e-3}}},
    }
    figures.growth_curves(tmp_path / "a.png", panels, "growth")
    image = picture(tmp_path / "a.png")
    assert all(share_of(image, color) > 1e-4 for color in ("#D55E00", "#E69F00", "#777777"))


@pytest.mark.parametrize("log", [False, True])
def test_curves(tmp_path, log):
    panels = {"before": {"a": {1: 1e-40, 2: 0.0, 3: 1.0}}, "after": {"b": {1: 1.0, 2: np.inf, 3: 2.0}, "c": {1: 1.0}}}
    report.curves(tmp_path / "a.png", panels, "layer", "norm", log=log)
    picture(tmp_path / "a.png")


def test_phase_diagram(tmp_path):
    panels = {
        "growth": [[-np.inf, 0.4, np.inf], [-0.1, 3.0, 20.0]],
        "percent": [[0.0, 10.0, 50.0], [60.0, 90.0, 100.0]],
    }
    report.phase_diagram(tmp_path / "a.png", panels, ["a", "b"], ["c", "d", "e"], "what happens")
    image = picture(tmp_path / "a.png")
    assert share_of(image, figures.BLUE) > 1e-3 and share_of(image, figures.ORANGE) > 1e-3


def test_text_page(tmp_path):
    pieces = ["def f", "(x):\n", "\treturn $", "x" * 120, "\0"]
    report.text_page(tmp_path / "a.png", pieces, np.array([0.0, 1.0, 2.0, 9.0, 1.0]), "surprise")
    assert share_of(picture(tmp_path / "a.png"), figures.ORANGE) > 1e-3


def test_score_strips_show_what_is_aimed_at(tmp_path):
    report.score_strips(tmp_path / "a.png", {"one": np.array([5.0, 7.0]), "other": np.array([6.0])}, 3, "scores")
    image = picture(tmp_path / "a.png")
    assert share_of(image, figures.ORANGE) > 1e-4 and share_of(image, figures.GREY) > 1e-4


def test_image_rows(tmp_path):
    rows = {"grey": np.random.default_rng(0).random((2, 4, 4)), "colour": np.full((2, 4, 4, 3), [213, 94, 0], np.uint8)}
    report.image_rows(tmp_path / "a.png", rows, ["a", "b"], "images")
    assert share_of(picture(tmp_path / "a.png"), figures.ORANGE) > 0.1


def test_heat_is_orange_where_it_is_high():
    heat = np.zeros((1, 40, 40))
    heat[0, 10:20, 10:20] = 1e-5
    image = report.heated(np.full((1, 40, 40), 100, np.uint8), heat)[0]
    assert image[15, 15].tolist() == [213, 94, 0] and image[35, 35].tolist() == [100, 100, 100]
    assert (report.heated(np.full((1, 4, 4), 100, np.uint8), np.zeros((1, 4, 4))) == 100).all()


def test_a_film_has_every_frame(tmp_path):
    frames = np.stack([np.full((6, 8, 3), 60 * i, np.uint8) for i in range(4)])
    report.film(tmp_path / "a.gif", frames, rate=10, scale=2)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 4 and film.size == (16, 12) and film.info["duration"] == 100


def test_boxes_are_blue_where_they_are_right_and_orange_where_not(tmp_path):
    image, there = np.zeros((1, 20, 20, 1)), [np.array([[2, 2, 10, 10, 1]])]
    for label, color in (1, figures.BLUE), (0, figures.ORANGE):
        found = [np.array([[2, 2, 10, 9, 0.9, label]])]
        report.boxes_page(tmp_path / "a.png", image, there, found, NAMES, "boxes")
        others = {figures.BLUE, figures.ORANGE} - {color}
        drawn = picture(tmp_path / "a.png")
        assert share_of(drawn, color) > 1e-3 and all(share_of(drawn, other) == 0 for other in others)


def test_paired_bars(tmp_path):
    values = {"one": np.array([0.5, 1.0, np.nan]), "other": np.array([0.2, 0.9, 0.1])}
    report.paired_bars(tmp_path / "a.png", values, NAMES, "bars")
    assert share_of(picture(tmp_path / "a.png"), figures.BLUE) > 0.01
