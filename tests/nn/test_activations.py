import flax.linen as linen
import jax
import jax.numpy as jnp
import pytest

from fbp import nn
from tests.nn.reference import assert_same_as_flax, normal

X = [*normal(20) * 3, 0.0, -100.0, 100.0]


class Activation(linen.Module):
    fun: object

    def __call__(self, x):
        return self.fun(x)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "silu", "gelu"])
def test_activation(name):
    assert_same_as_flax(getattr(nn, name)(), Activation(getattr(linen, name)), X)


def test_their_options():
    assert_same_as_flax(nn.leaky_relu(0.2), Activation(lambda x: linen.leaky_relu(x, 0.2)), X)
    assert_same_as_flax(nn.elu(0.5), Activation(lambda x: linen.elu(x, 0.5)), X)
    assert_same_as_flax(nn.gelu(approximate=False), Activation(lambda x: linen.gelu(x, approximate=False)), X)


def test_dropout_keeps_the_mean_and_the_rest():
    x, rng = jnp.ones(10_000), jax.random.key(0)
    y, _ = nn.dropout(0.25).apply({}, {}, x, train=True, rng=rng)
    assert set(y.tolist()) == {0.0, float(jnp.float32(1) / jnp.float32(0.75))} and abs(y.mean() - 1) < 0.02
    assert (linen.Dropout(0.25, deterministic=False).apply({}, x, rngs={"dropout": rng}) == 0).mean() > 0.2
    assert nn.dropout(0.25).apply({}, {}, x)[0] is x
    assert not nn.dropout(1.0).apply({}, {}, x, train=True, rng=rng)[0].any()


def test_dropout_says_what_it_needs():
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], but is 1.5"):
        nn.dropout(1.5)
    with pytest.raises(ValueError, match="pass rng="):
        nn.dropout(0.5).apply({}, {}, jnp.ones(3), train=True)
