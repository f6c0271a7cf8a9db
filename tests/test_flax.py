"""Unmodified models of Flax and Equinox: the same gradients as jax.grad, under every transformation."""

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fbp
from fbp.check.compare import relative_error


@pytest.fixture(autouse=True)
def promotion():
    """Flax promotes dtypes silently."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class TransformerBlock(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        mask = linen.make_causal_mask(x[..., 0])
        y = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=not train)(y, mask=mask)
        y = linen.gelu(linen.Dense(16)(linen.LayerNorm()(x)))
        return x + linen.Dropout(0.1, deterministic=not train)(linen.Dense(x.shape[-1])(y))


class ConvNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dense = nnx.Linear(4 * 4 * 4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.dense(x.reshape(x.shape[0], -1))


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), float)


def transformer():
    model, x = TransformerBlock(), normal(2, 5, 8)
    params = model.init(jax.random.key(0), x, False)

    def loss(params, x):
        return jnp.mean(model.apply(params, x, True, rngs={"dropout": jax.random.key(1)}) ** 2)

    return loss, params, x


def conv_net():
    graph, params, rest = nnx.split(ConvNet(nnx.Rngs(0)), nnx.Param, ...)
    rest = jax.tree.map(lambda s: s.astype(float), rest)

    def loss(params, x):
        model = nnx.merge(graph, params, rest, copy=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(x), jnp.arange(6) % 3)
        return jnp.mean(losses)

    return loss, params, normal(6, 8, 8, 1)


def lstm():
    model, x = linen.RNN(linen.OptimizedLSTMCell(4, param_dtype=float)), normal(2, 5, 3)
    return lambda params, x: jnp.mean(model.apply(params, x) ** 2), model.init(jax.random.key(0), x), x


def equinox_mlp():
    params, static = eqx.partition(eqx.nn.MLP(3, 2, 8, 2, key=jax.random.key(0)), eqx.is_inexact_array)
    return lambda params, x: jnp.mean(jax.vmap(eqx.combine(params, static))(x) ** 2), params, normal(4, 3)


MODELS = {"transformer": transformer, "conv_net": conv_net, "lstm": lstm, "equinox": equinox_mlp}


def assert_same(ours, theirs, tolerance=1e-5):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert relative_error(a, b, theirs) < tolerance


@pytest.mark.parametrize("model", MODELS)
def test_float64_jitted_and_not(model):
    with jax.enable_x64(True):
        loss, params, x = MODELS[model]()
        params = jax.tree.map(lambda p: p.astype(float), params)
        theirs = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)
        assert_same(jax.jit(fbp.value_and_grad(loss, (0, 1)))(params, x), theirs, 1e-10)
        assert_same(fbp.value_and_grad(loss, (0, 1))(params, x), theirs, 1e-10)
        assert_same(fbp.value_and_grad(jax.jit(loss), (0, 1))(params, x), theirs, 1e-10)


@pytest.mark.parametrize("model", MODELS)
def test_float32(model):
    loss, params, x = MODELS[model]()
    theirs = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)
    assert_same(jax.jit(fbp.value_and_grad(loss, (0, 1)))(params, x), theirs)


def test_running_statistics_leave_as_aux():
    graph, params, rest = nnx.split(ConvNet(nnx.Rngs(0)), nnx.Param, ...)
    x = normal(6, 8, 8, 1)

    def loss(params):
        model = nnx.merge(graph, params, rest, copy=True)
        return jnp.mean(model(x) ** 2), nnx.state(model, nnx.BatchStat)

    (ours, stats), (theirs, expected) = (jax.jit(m.grad(loss, has_aux=True))(params) for m in (fbp, jax))
    assert_same(ours, theirs)
    assert_same(stats, expected)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(rest), strict=False))


def directional(grad, loss, x):
    """The gradient of |gradient|²: second order."""

    def size(params):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grad(loss)(params, x)))

    return size


TRANSFORMED = {
    "vmap": lambda m, loss, params, x: jax.vmap(m.grad(loss), (None, 0))(params, x[:, None]),
    "jvp": lambda m, loss, params, x: jax.jvp(lambda p: m.grad(loss)(p, x), (params,), (params,)),
    "grad of grad": lambda m, loss, params, x: m.grad(directional(m.grad, loss, x))(params),
    "jax.grad of grad": lambda m, loss, params, x: jax.grad(directional(m.grad, loss, x))(params),
    "grad of jax.grad": lambda m, loss, params, x: m.grad(directional(jax.grad, loss, x))(params),
    "remat": lambda m, loss, params, x: m.grad(jax.checkpoint(loss))(params, x),
}


@pytest.mark.parametrize("how", TRANSFORMED)
@pytest.mark.parametrize("model", [pytest.param("transformer", marks=pytest.mark.slow), "conv_net"])
def test_transformations_compose(model, how):
    loss, params, x = MODELS[model]()
    ours, theirs = (jax.jit(lambda p, x, m=m: TRANSFORMED[how](m, loss, p, x))(params, x) for m in (fbp, jax))
    assert_same(ours, theirs, 3e-5)


def test_a_replaced_rule_reaches_inside():
    loss, params, x = transformer()
    frozen = fbp.RULES | {jax.lax.tanh_p: fbp.table(lambda g: 0 * g)}
    ours, theirs = fbp.grad(loss, rules=frozen)(params, x), jax.grad(loss)(params, x)
    changed = [(a != b).any() for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)]
    assert any(changed)


def test_nothing_leaks():
    loss, params, x = transformer()
    jax.jit(fbp.grad(loss))(params, x)
