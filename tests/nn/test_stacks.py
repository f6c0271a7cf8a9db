import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import nn
from tests.nn.reference import assert_same_as_flax, normal


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        return linen.tanh(linen.Dense(4, name="dense_0")(x)), None


class Scanned(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.scan(Dense, {"params": 0}, split_rngs={"params": True}, length=3)(name="layers")(x, None)[0]


@pytest.mark.parametrize("keep_every", [1, 3])
def test_stack_is_flax_scan(keep_every):
    ours = nn.stack(nn.sequential(nn.dense(4), nn.tanh()), 3, keep_every)
    assert_same_as_flax(ours, Scanned(), normal(2, 4), to_fbp=lambda params: params["layers"] | {"tanh_0": {}})


class Reversible(linen.Module):
    @linen.compact
    def __call__(self, x):
        def block(module, halves, _):
            x1, x2 = halves
            x1 = x1 + linen.Dense(2, name="f")(x2)
            return (x1, x2 + linen.Dense(2, name="g")(x1)), None

        halves = tuple(jnp.split(x, 2, -1))
        scan = linen.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return jnp.concatenate(scan(self, halves, None)[0], -1)


def test_reversible_is_the_same_by_hand():
    assert_same_as_flax(nn.reversible(nn.dense(2), nn.dense(2), 3), Reversible(), normal(2, 4))


def test_each_layer_has_parameters_and_random_numbers_of_its_own():
    layer = nn.stack(nn.sequential(nn.dense(4, use_bias=False), nn.dropout(0.5)), 8)
    params, state = layer.init(jax.random.key(0), jnp.ones((2, 4)))
    kernels = params["dense_0"]["kernel"]
    assert len(np.unique(np.asarray(kernels[:, 0, 0]))) == 8
    identity = {"dense_0": {"kernel": jnp.broadcast_to(jnp.eye(4), kernels.shape)}, "dropout_0": {}}
    y, _ = layer.apply(identity, state, jnp.ones((512, 4)), train=True, rng=jax.random.key(1))
    assert 0 < float(jnp.mean(y > 0)) < 0.05  # one in 2^8; with the same mask for all it would be a half
    assert jnp.array_equal(layer.apply(identity, state, jnp.ones((2, 4)))[0], jnp.ones((2, 4)))


def test_options_of_apply_reach_every_layer():
    layer = nn.stack(nn.transformer_block(2, 8), 2)
    x = jnp.asarray(normal(1, 5, 4), jnp.float32)
    params, state = layer.init(jax.random.key(0), x)
    run = lambda x: layer.apply(params, state, x, mask=nn.make_causal_mask(x[..., 0], bool))[0][0, 1].sum()
    assert not jnp.any(fbp.grad(run)(x)[0, 2:]) and jnp.any(fbp.grad(run)(x)[0, :2])


@pytest.mark.parametrize(
    "layer, says",
    [
        (nn.stack(nn.batch_norm(), 2), "stack runs its layers again .* batch_norm has some: .*mean.*Use layer_norm"),
        (nn.stack(nn.dense(3), 2), r"stack needs a layer that gives what it takes, but dense makes \(1, 3\) of \(1, 4\)"),
        (nn.reversible(nn.dense(2), nn.batch_norm(), 2), "reversible runs its layers again"),
        (nn.reversible(nn.dense(2), nn.dense(4), 2), r"dense makes \(1, 4\) of \(1, 2\)"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_said(layer, says):
    with pytest.raises(ValueError, match=says):
        layer.init(jax.random.key(0), jnp.ones((1, 4)))


def test_an_odd_number_of_features_has_no_halves():
    with pytest.raises(ValueError, match="3 features: an odd number"):
        nn.reversible(nn.dense(2), nn.dense(2), 2).init(jax.random.key(0), jnp.ones((1, 3)))
