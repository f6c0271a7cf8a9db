import flax.linen as linen
import jax
import jax.numpy as jnp
import pytest

from fbp import nn
from tests.nn.reference import assert_same_as_flax, normal

IMAGE = normal(2, 7, 6, 4)


@pytest.mark.parametrize("options", [{}, {"use_bias": False}])
def test_dense(options):
    assert_same_as_flax(nn.dense(3, **options), linen.Dense(3, **options), normal(2, 5, 4))


def test_the_dtype_to_compute_in_can_be_named():
    x = jnp.asarray(normal(2, 4), jnp.float32)
    for options, dtype in ({}, jnp.float32), ({"dtype": jnp.bfloat16}, jnp.bfloat16):
        params, state = nn.dense(3, **options).init(jax.random.key(0), x)
        assert params["kernel"].dtype == jnp.float32
        assert nn.dense(3, **options).apply(params, state, x)[0].dtype == dtype


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2, "use_bias": False},
        {"strides": (2, 1), "padding": "VALID"},
        {"padding": [(2, 0), (1, 3)], "kernel_dilation": 2},
        {"padding": 1, "input_dilation": (2, 1)},
        {"feature_group_count": 2},
        {"feature_group_count": 4},
    ],
    ids=str,
)
def test_conv(options):
    assert_same_as_flax(nn.conv(8, (3, 2), **options), linen.Conv(8, (3, 2), **options), IMAGE)


def test_conv_over_one_and_three_axes():
    assert_same_as_flax(nn.conv(3, 3, strides=2), linen.Conv(3, (3,), strides=2), normal(2, 7, 4))
    assert_same_as_flax(nn.conv(3, (2, 2, 2)), linen.Conv(3, (2, 2, 2)), normal(2, 3, 4, 5, 2))


@pytest.mark.parametrize(
    "options",
    [{}, {"strides": (2, 2)}, {"strides": (2, 1), "padding": "VALID"}, {"transpose_kernel": True, "use_bias": False}],
    ids=str,
)
def test_conv_transpose(options):
    assert_same_as_flax(nn.conv_transpose(3, (3, 2), **options), linen.ConvTranspose(3, (3, 2), **options), IMAGE)


def test_embed():
    assert_same_as_flax(nn.embed(7, 3), linen.Embed(7, 3), [[1, 6, 0], [6, 6, 2]])


@pytest.mark.parametrize(
    "layer, x, error",
    [
        (nn.conv(3, (3, 3)), jnp.ones((4, 4)), "conv with a kernel over 2 axes takes x"),
        (nn.conv(3, (3, 3), feature_group_count=2), jnp.ones((1, 4, 4, 2)), "feature_group_count=2 needs"),
        (nn.embed(7, 3), jnp.ones(3), "embed takes integers, but x is float32"),
    ],
)
def test_what_does_not_fit_is_refused(layer, x, error):
    with pytest.raises((TypeError, ValueError), match=error):
        layer.init(jax.random.key(0), x)


def test_embed_refuses_tokens_out_of_range():
    layer = nn.embed(7, 3)
    params, state = layer.init(jax.random.key(0), jnp.array([0]))
    with pytest.raises(ValueError, match=r"embed expects integers in \[0, 7\), but they range from -1 to 7"):
        layer.apply(params, state, jnp.array([-1, 7]))
