import flax.linen as linen
import jax
import jax.numpy as jnp
import pytest

from fbp import nn
from tests.nn.reference import assert_same_as_flax, normal


def test_sequential():
    def to_fbp(params):
        return {"dense_0": params["layers_0"], "tanh_0": {}, "dense_1": params["layers_2"]}

    flax = linen.Sequential([linen.Dense(4), linen.tanh, linen.Dense(2)])
    ours = nn.sequential(nn.dense(4), nn.tanh(), nn.dense(2))
    assert_same_as_flax(ours, flax, normal(3, 5), to_fbp=to_fbp)


def test_residual():
    class Residual(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2, use_bias=False, name="shortcut")(x) + linen.Dense(2, name="layer")(x)

    ours = nn.residual(nn.dense(2), nn.dense(2, use_bias=False))
    assert_same_as_flax(ours, Residual(), normal(3, 5))


def test_residual_refuses_another_shape():
    layer = nn.residual(nn.dense(2))
    params, state = layer.init(jax.random.key(0), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"adds f\(x\) of shape \(1, 2\) to x of shape \(1, 3\)"):
        layer.apply(params, state, jnp.ones((1, 3)))


def test_init_needs_shapes_only():
    layer = nn.conv_net(10, (4, 8))
    shape = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    from_shape, from_array = (layer.init(jax.random.key(0), x) for x in (shape, jnp.ones(shape.shape)))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), from_shape, from_array))


def test_every_layer_is_found_by_its_path():
    layer = nn.sequential(nn.dense(4), nn.tanh(), nn.residual(nn.dense(4)))
    params, state = layer.init(jax.random.key(0), jnp.ones((1, 3)))
    jaxpr = jax.make_jaxpr(lambda p, x: layer.apply(p, state, x))(params, jnp.ones((1, 3)))
    paths = {str(eqn.source_info.name_stack) for eqn in jaxpr.eqns}
    assert {"dense_0", "tanh_0", "residual_0/layer"} <= paths
