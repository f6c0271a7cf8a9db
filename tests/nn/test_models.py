import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import nn
from tests.nn.reference import assert_same_as_flax, normal


class FlaxBlock(linen.Module):
    """The pre-norm transformer block of `nn.transformer_block`, in Flax."""

    @linen.compact
    def __call__(self, x, mask=None):
        y = linen.LayerNorm(use_fast_variance=False, name="norm_0")(x)
        x = x + linen.MultiHeadDotProductAttention(2, name="attention")(y, mask=mask)
        y = linen.LayerNorm(use_fast_variance=False, name="norm_1")(x)
        y = linen.gelu(linen.Dense(8, name="dense_0")(y))
        return x + linen.Dense(x.shape[-1], name="dense_1")(y)


@pytest.mark.parametrize("mask", [None, nn.make_causal_mask(jnp.ones((2, 5)), bool)], ids=["full", "causal"])
def test_transformer_block(mask):
    def to_fbp(params):
        mlp = {"dense_0": params["dense_0"], "gelu_0": {}, "dense_1": params["dense_1"], "dropout_0": {}}
        return {key: params[key] for key in ("norm_0", "attention", "norm_1")} | {"mlp": mlp}

    assert_same_as_flax(nn.transformer_block(2, 8), FlaxBlock(), normal(2, 5, 6), to_fbp=to_fbp, mask=mask)


def test_a_causal_transformer_block_sees_nothing_after():
    block, x = nn.transformer_block(2, 8, is_causal=True), jnp.asarray(normal(2, 5, 6), jnp.float32)
    params, state = block.init(jax.random.key(0), x)
    slope = fbp.grad(lambda x: jnp.sum(block.apply(params, state, x)[0][:, 2]))(x)
    assert slope[:, :3].all() and not slope[:, 3:].any()


@pytest.mark.parametrize(
    "layer",
    [nn.mlp((16, 3), rate=0.1), nn.conv_net(3, (4, 8), rate=0.1), nn.residual_net(3, (4, 8), blocks=2)],
    ids=["mlp", "conv_net", "residual_net"],
)
def test_a_model_learns_a_batch(layer):
    x = jnp.asarray(normal(8, 8, 8, 1), jnp.float32)
    labels = jnp.arange(8) % 3
    params, state = layer.init(jax.random.key(0), x)

    @jax.jit
    @fbp.value_and_grad
    def loss(params, rng):
        logits, _ = layer.apply(params, state, x, train=True, rng=rng)
        return jnp.mean(nn.softmax_cross_entropy_with_integer_labels(logits, labels))

    losses = []
    for rng in jax.random.split(jax.random.key(1), 60):
        value, gradient = loss(params, rng)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        losses.append(float(value))
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
