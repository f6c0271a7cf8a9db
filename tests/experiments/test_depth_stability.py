import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest

from experiments import deep_networks as deep
from experiments import depth_stability
from experiments.deep_networks import Kind
from experiments.depth_report import speedups
from experiments.depth_stability import DepthStability, experiment
from experiments.depth_survey import growth, measure
from experiments.harness import main
from fbp import nn

OPTIONS = [
    "--data digits --limit 100 --width 8 --depths 3 --steps 1 --activations relu --normalizations none --flow-depths 3",
    "--deepest 20 --deepest-epochs 1 --claim-width 8 --claim-epochs 1",
]
PICTURES = ["claims.png", "deepest.png", "gradient_flow.png", "phase_diagram_3.png"]


def run(*args):
    main(DepthStability, experiment, [str(arg) for arg in args])


def test_a_run_leaves_its_result_and_pictures_and_goes_on_when_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(depth_stability, "BEFORE", [Kind("sigmoid", "naive")])
    monkeypatch.setattr(depth_stability, "AFTER", [Kind("relu", "He", residual="ReZero")])
    monkeypatch.setattr(depth_stability, "rezero_claim", lambda *_: {"others": {1: 0.5}, "ours": {1: 0.6}})
    folder = tmp_path / "run"
    run("--out", folder, *" ".join(OPTIONS).split())
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert metrics["gradient_max_relative_difference"] < 1e-5
    assert {"deepest_test_accuracy", "baseline_deepest_test_accuracy", "kinds_that_learn_at_3"} <= {*metrics}
    assert sorted(path.name for path in folder.glob("*.png")) == PICTURES
    assert all(matplotlib.image.imread(folder / name).std() > 0.01 for name in PICTURES)
    kinds = (folder / "kinds.jsonl").read_text()
    assert [len(json.loads(line)["norms"]) for line in kinds.splitlines()] == [3] * 13

    (folder / "result.json").unlink()
    (folder / "kinds.jsonl").write_text(kinds[:-20])  # killed while it wrote the last line
    for name in "compare_with_jax", "megabytes", "draw_kinds":  # which takes time, and does not depend on the past
        monkeypatch.setattr(depth_stability, name, lambda *_: metrics)
    run("--resume", folder)
    assert json.loads((folder / "result.json").read_text())["metrics"] == metrics
    assert (folder / "kinds.jsonl").read_text() == kinds


def test_an_unknown_activation_is_an_error_in_one_paragraph(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        run("--out", tmp_path / "run", "--activations", "relu", "cubic")
    error = capsys.readouterr().err
    assert (
        error.startswith("error: --activations: cubic unknown. Choose from: sigmoid, tanh,") and error.count("\n") == 1
    )


def test_the_kinds_are_all_that_differ():
    kinds = deep.kinds(tuple(deep.ACTIVATIONS), deep.NORMALIZATIONS)
    assert len(kinds) == len({*kinds}) == 5 * 4 * (2 * 3 + 3 * 5)
    assert (
        str(Kind("tanh", "He", "layer", "pre-norm")) == "tanh He layer pre-norm"
        and str(Kind("relu", "He")) == "relu He"
    )


@pytest.mark.parametrize(
    ("residual", "y"),
    [
        ("none", lambda x, u: np.tanh(norm(u))),
        ("plain", lambda x, u: x + np.tanh(norm(u))),
        ("ReZero", lambda x, u: x + 0.5 * np.tanh(norm(u))),
        ("post-norm", lambda x, u: norm(x + np.tanh(u))),
    ],
)
def test_a_block_is_what_its_equation_says(residual, y):
    x = np.array([[1.0, -2.0]], np.float32)
    layer = deep.block(Kind("tanh", "He", "RMS", residual), 2)
    params, state = layer.init(jax.random.key(0), x)
    params = jax.tree_util.tree_map_with_path(lambda path, p: p + 0.5 if "gate" in str(path) else p, params)
    (kernel,) = (p for path, p in jax.tree_util.tree_flatten_with_path(params)[0] if path[-1].key == "kernel")
    np.testing.assert_allclose(layer.apply(params, state, x)[0], y(x, x @ np.asarray(kernel)), rtol=1e-5)


def norm(x):
    return x / np.sqrt(np.mean(x**2))


def test_the_gradient_flow_of_a_linear_chain_is_a_power_of_its_slope(monkeypatch):
    """x_l = x_{l-1} / 2, so x̄_l = x̄_L 2^(l - L): ten bits over ten layers."""
    monkeypatch.setitem(deep.ACTIVATIONS, "linear", lambda: nn.stateless("linear", lambda x: x / 2))
    monkeypatch.setitem(deep.INITIALIZATIONS, "identity", lambda rng, shape, dtype: jnp.eye(*shape, dtype=dtype))
    batches = [{"x": np.ones((4, 2, 2, 1), np.float32), "y": np.arange(4)}]
    group = [Kind("linear", "identity")]
    norms, accuracy = measure(group, 3, 11, batches, None, optax.sgd(0.1), jax.random.key(0))
    np.testing.assert_allclose(norms[0] / norms[0, -1], 2.0 ** np.arange(-10, 1), rtol=1e-5)
    assert np.isnan(accuracy).all() and abs(growth(norms[0]) + 10 * np.log10(2)) < 1e-5


def test_a_gradient_that_has_left_float32_has_vanished_or_exploded():
    assert growth([0.0, 1.0]) == -np.inf
    assert growth([np.inf, 1.0]) == growth([np.nan, 1.0]) == np.inf


def test_the_speedup_is_in_steps_to_the_best_accuracy_of_the_other():
    curves = {"slow": {10: 0.1, 20: 0.5, 30: 0.4}, "better": {10: 0.8, 20: 0.9}, "ours": {10: 0.6, 20: 0.7}}
    assert speedups("claim", curves) == {
        "claim_test_accuracy": 0.7,
        "baseline_slow_test_accuracy": 0.5,
        "claim_speedup_over_slow": 2.0,
        "baseline_better_test_accuracy": 0.9,
        "claim_speedup_over_better": None,
    }
