import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbp import nn
from tests.nn.reference import assert_same_as_flax, normal

IMAGE = normal(3, 5, 4, 6) * 2 + 1
OPTIONS = [{}, {"use_bias": False}, {"use_scale": False}, {"epsilon": 0.1}]


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", [*OPTIONS, {"momentum": 0.9}], ids=str)
def test_batch_norm(options, train):
    assert_same_as_flax(nn.batch_norm(**options), BatchNorm(**options), IMAGE, train=train)


class BatchNorm(linen.BatchNorm):
    """BatchNorm whose init needs no flag."""

    @linen.compact
    def __call__(self, x, use_running_average=True):
        return super().__call__(x, use_running_average=use_running_average)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layer_norm(options):
    assert_same_as_flax(nn.layer_norm(**options), linen.LayerNorm(**options), IMAGE)


@pytest.mark.parametrize("options", [{}, {"use_scale": False}, {"epsilon": 0.1}], ids=str)
def test_rms_norm(options):
    assert_same_as_flax(nn.rms_norm(**options), linen.RMSNorm(**options), IMAGE)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_group_norm(options):
    assert_same_as_flax(nn.group_norm(3, **options), linen.GroupNorm(3, **options), IMAGE)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_instance_norm(options):
    assert_same_as_flax(nn.instance_norm(**options), linen.InstanceNorm(**options), IMAGE)


@pytest.mark.parametrize("use_scale", [True, False])
def test_weight_norm(use_scale):
    def to_fbp(params):
        """Flax keeps the layer's parameters beside the norm's: {"Dense_0": ..., "WeightNorm_0": {"Dense_0/kernel/scale"}}."""
        layer = params["layer_instance"]
        scales = [leaf for path, leaf in jax.tree.leaves_with_path(params) if "scale" in jax.tree_util.keystr(path)]
        return {"layer": layer, "scale": {"['kernel']": scales[0]} if use_scale else {}}

    flax = linen.WeightNorm(linen.Dense(4), use_scale=use_scale)
    assert_same_as_flax(nn.weight_norm(nn.dense(4), use_scale=use_scale), flax, normal(3, 5), to_fbp=to_fbp)


def test_group_norm_needs_groups_that_divide():
    layer = nn.group_norm(4)
    params, state = layer.init(jax.random.key(0), jnp.ones((1, 2, 6)))
    with pytest.raises(ValueError, match="num_groups=4 cannot divide the 6 features"):
        layer.apply(params, state, jnp.ones((1, 2, 6)))


def test_statistics_are_computed_in_float32():
    layer = nn.layer_norm(dtype=jnp.bfloat16)
    x = jnp.asarray(np.arange(512) + 1000.0, jnp.bfloat16)
    params, state = layer.init(jax.random.key(0), x)
    y, _ = layer.apply(params, state, x)
    assert y.dtype == jnp.bfloat16 and abs(float(y.astype(jnp.float32).std()) - 1) < 0.01
