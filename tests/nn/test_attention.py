import flax.linen as linen
import jax
import jax.numpy as jnp
import pytest

import fbp
from fbp import nn
from tests.nn.reference import assert_same_as_flax, normal

X = normal(2, 5, 6)
CAUSAL = nn.make_causal_mask(jnp.ones((2, 5)), bool)


@pytest.mark.parametrize("mask", [None, CAUSAL], ids=["full", "causal"])
@pytest.mark.parametrize("options", [{}, {"qkv_features": 4, "out_features": 3}, {"use_bias": False}], ids=str)
def test_multi_head_dot_product_attention(options, mask):
    ours = nn.multi_head_dot_product_attention(2, **options)
    assert_same_as_flax(ours, linen.MultiHeadDotProductAttention(2, **options), X, mask=mask)


def test_causal_is_as_with_the_mask_that_says_so():
    params, state = nn.multi_head_dot_product_attention(2).init(jax.random.key(0), X)
    flat = jnp.asarray(X, jnp.float32)
    for x in (flat, flat[:, None]):  # a second batch axis
        causal, _ = nn.multi_head_dot_product_attention(2, is_causal=True).apply(params, state, x)
        mask = nn.make_causal_mask(jnp.ones(x.shape[:-1]), bool)
        masked, _ = nn.multi_head_dot_product_attention(2).apply(params, state, x, mask=mask)
        assert jnp.allclose(causal, masked, atol=1e-6)


@pytest.mark.parametrize("dropout_rate", [0.0, 0.5])
def test_no_matrix_of_weights_is_kept(dropout_rate):
    layer = nn.multi_head_dot_product_attention(2, dropout_rate=dropout_rate)
    x = jax.ShapeDtypeStruct((1, 150, 6), jnp.float32)
    params, _ = jax.eval_shape(layer.init, jax.random.key(0), x)
    run = lambda p, x: layer.apply(p, {}, x, train=True, rng=jax.random.key(1))[0]
    _, pullback = jax.eval_shape(lambda *args: fbp.vjp(run, *args), params, x)
    assert max(leaf.size for leaf in jax.tree.leaves(pullback)) == 150 * 6


def test_cross_attention():
    flax = linen.MultiHeadDotProductAttention(3)
    assert_same_as_flax(nn.multi_head_dot_product_attention(3), flax, X, normal(2, 7, 4), normal(2, 7, 8))


def test_dot_product_attention_with_a_bias():
    query, key, value = (jnp.asarray(normal(2, 4, 3, 5, seed=i), jnp.float32) for i in range(3))
    bias = jnp.asarray(normal(3, 4, 4), jnp.float32)
    expected = linen.dot_product_attention(query, key, value, bias)
    assert jnp.allclose(nn.dot_product_attention(query, key, value, bias), expected, atol=1e-6)


def test_the_causal_mask_is_flax_s():
    assert (linen.make_causal_mask(jnp.ones((2, 5)), dtype=bool) == CAUSAL).all()


def test_dropout_is_on_the_weights():
    layer = nn.multi_head_dot_product_attention(2, dropout_rate=1.0)
    params, state = layer.init(jax.random.key(0), jnp.ones((1, 3, 4)))
    dropped, _ = layer.apply(params, state, jnp.ones((1, 3, 4)), train=True, rng=jax.random.key(1))
    assert (dropped == params["out"]["bias"]).all()
    assert (layer.apply(params, state, jnp.ones((1, 3, 4)))[0] != params["out"]["bias"]).any()


def test_heads_must_divide_the_features():
    with pytest.raises(ValueError, match="4 heads do not divide qkv_features=6"):
        nn.multi_head_dot_product_attention(4).init(jax.random.key(0), jnp.ones((1, 5, 6)))
