"""Where PyTorch is installed, its networks have as many parameters as their twins, and a gradient."""

import jax
import numpy as np
import pytest

from benchmarks import drop_in, pytorch


@pytest.mark.parametrize("name", ["mlp", "vgg", "mobilenet", "lstm", "transformer-12"])
def test_the_networks_are_those_of_flax(name):
    pytest.importorskip("torch")
    variant = drop_in.CASES[name]().variants["jax.grad"]
    run = pytorch.step(name, variant.batch)
    assert run is not None
    loss, gradient = run(None)
    assert np.isfinite(float(loss))
    size = sum(leaf.size for leaf in jax.tree.leaves(variant.params))
    twice = 4 * 128 if name == "lstm" else 0  # PyTorch's has two biases, of which one would do
    assert sum(g.numel() for g in gradient) - twice == size


def test_there_is_no_network_of_another_name():
    assert pytorch.step("carried-array", ()) is None
