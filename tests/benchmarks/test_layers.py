"""The networks of fbp.nn are those of Flax. (At small sizes: how long they take is no test.)"""

import flax.linen as linen
import jax
import numpy as np
import pytest

from benchmarks import __main__ as bench
from benchmarks import drop_in, layers
from benchmarks.measure import measure
from fbp import nn

SMALL = {
    "mlp": lambda: layers.twin(drop_in.classifier(drop_in.MLP(8), layers.normal(2, 5)), nn.mlp((8, 8, 8, 8, 10))),
    "vgg": lambda: layers.twin(drop_in.classifier(drop_in.VGG((2, 3)), layers.normal(2, 4, 4, 3)), layers.vgg((2, 3))),
    "resnet": lambda: layers.twin(
        drop_in.classifier(drop_in.ResNet((2, 3)), layers.normal(2, 4, 4, 3)), nn.residual_net(10, (2, 3), 2)
    ),
    "mobilenet": lambda: layers.twin(
        drop_in.classifier(drop_in.MobileNet((2, 3)), layers.normal(2, 4, 4, 3)), layers.mobilenet((2, 3))
    ),
    "lstm": lambda: layers.lstm(5, 4),
    "gru": lambda: layers.gru(5, 4),
    "transformer": lambda: layers.transformer(2, 8, 5),
    "vision-transformer": lambda: layers.twin(
        drop_in.classifier(drop_in.VisionTransformer(1), layers.normal(2, 8, 8, 3)), layers.vision_transformer(1)
    ),
    "attention": lambda: layers.attention(16, 2, 4),
    "cross-entropy": lambda: layers.linear_cross_entropy(7, 5, 4),
    "deep": lambda: layers.deep(3, 2, 4),
    "reversible": lambda: layers.reversible(3, 2, 4),
    "layer-norm": lambda: layers.layer_norm((2, 4)),
}


SLOW = {"vgg", "resnet", "mobilenet", "vision-transformer"}  # to compile


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SMALL])
def test_the_gradient_is_that_of_the_flax_twin(name):
    with jax.numpy_dtype_promotion("standard"):  # Flax's and jax.nn's own code mixes dtypes
        result = measure(SMALL[name](), seconds=0, compiles=1, rounds=2)
    assert {"jax.grad", "jax.grad of fbp.nn", "fbp.grad"} <= set(result.variants)
    differences = {variant: measured.difference for variant, measured in result.variants.items()}
    assert all(difference is None or difference < 1e-4 for difference in differences.values()), differences


def test_parameters_are_paired_as_they_were_made():
    made = {"b": {"kernel": 1, "bias": 2}, "a": {}, "0": 3}
    assert layers.paths_as_made(made) == [("b", "kernel"), ("b", "bias"), ("0",)]
    assert layers.paths(made) == [("0",), ("b", "bias"), ("b", "kernel")]


def test_twins_of_other_shapes_are_refused():
    with pytest.raises(AssertionError):
        layers.twin(drop_in.regression(linen.Dense(3), layers.normal(2, 4)), nn.dense(5))


def test_growth_is_one_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(layers, "GROWTH", {"classes": ((3, 5), lambda n: layers.linear_cross_entropy(n, 4, 4))})
    picture, numbers = tmp_path / "growth.png", tmp_path / "growth.json"
    assert bench.main(bench.Options(growth=picture, json=numbers)) == 0
    assert picture.stat().st_size > 10_000 and "\n5 " in capsys.readouterr().out
    assert np.isfinite(float(numbers.read_text().split('"forward": ')[1].split(",")[0]))
