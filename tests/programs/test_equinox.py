"""Equinox: its layers, applied to arrays and differentiated with respect to their parameters and inputs."""

import equinox as eqx
import jax
import jax.numpy as jnp

import fbp
from tests.programs.agree import Program, check, normal, one_test_each

KEY = jax.random.key(0)


def module(name, make, *args, call=lambda layer, *args: layer(*args)):
    """The module's arrays are an argument; what is static in it is closed over."""
    params, static = eqx.partition(make(), eqx.is_inexact_array)
    return Program(name, lambda params, *args: call(eqx.combine(params, static), *args), (params, *args))


def scanned(cell, state, xs):
    return jax.lax.scan(lambda state, x: (cell(x, state), None), state, xs)[0]


def with_state(make, *args):
    """A module that keeps running statistics, of a batch."""
    layer, state = eqx.nn.make_with_state(make)()
    params, static = eqx.partition(layer, eqx.is_inexact_array)

    def fun(params, state, *args):
        layer = eqx.combine(params, static)
        y, state = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(*args, state)
        return y, [x for x in jax.tree.leaves(state) if eqx.is_inexact_array(x)]

    return fun, params, state, args


nn = eqx.nn
IMAGE, VECTOR, SEQUENCE = normal(4, 9, 8), normal(4), normal(5, 4)

PROGRAMS = [
    module("Linear", lambda: nn.Linear(4, 3, key=KEY), VECTOR),
    module("Linear to a scalar", lambda: nn.Linear(4, "scalar", key=KEY), VECTOR),
    module("Conv1d", lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2, key=KEY), normal(4, 9)),
    module("Conv2d", lambda: nn.Conv2d(4, 3, 3, dilation=2, key=KEY), IMAGE),
    module("Conv2d, circular", lambda: nn.Conv2d(4, 3, 3, padding="SAME", padding_mode="CIRCULAR", key=KEY), IMAGE),
    module("Conv3d", lambda: nn.Conv3d(2, 3, 2, key=KEY), normal(2, 4, 5, 4)),
    module("ConvTranspose2d", lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1, key=KEY), IMAGE),
    module("LayerNorm", lambda: nn.LayerNorm(4), VECTOR),
    module("RMSNorm", lambda: nn.RMSNorm(4), VECTOR),
    module("GroupNorm", lambda: nn.GroupNorm(2, 4), IMAGE),
    module("WeightNorm", lambda: nn.WeightNorm(nn.Linear(4, 3, key=KEY)), VECTOR),
    module("Embedding", lambda: nn.Embedding(7, 3, key=KEY), jnp.array(4)),
    module("RotaryPositionalEmbedding", lambda: nn.RotaryPositionalEmbedding(4), SEQUENCE),
    module("PReLU", lambda: nn.PReLU(0.1), VECTOR),
    module("MaxPool2d", lambda: nn.MaxPool2d(3, 2), IMAGE),
    module("AvgPool2d", lambda: nn.AvgPool2d(2, 2), IMAGE),
    module("AdaptiveAvgPool2d", lambda: nn.AdaptiveAvgPool2d((3, 2)), IMAGE),
    module("AdaptiveMaxPool2d", lambda: nn.AdaptiveMaxPool2d((3, 2)), IMAGE),
    module("Dropout", lambda: nn.Dropout(0.4), VECTOR, call=lambda layer, x: layer(x, key=KEY)),
    module("MultiheadAttention", lambda: nn.MultiheadAttention(2, 4, key=KEY), SEQUENCE, SEQUENCE[::-1], SEQUENCE),
    module("MLP", lambda: nn.MLP(4, 2, 8, 3, activation=jax.nn.gelu, key=KEY), VECTOR),
    module("MLP, mapped", lambda: nn.MLP(4, 2, 8, 1, key=KEY), SEQUENCE, call=lambda mlp, x: jax.vmap(mlp)(x)),
    module("MLP, under filter_jit", lambda: nn.MLP(4, 2, 8, 1, key=KEY), VECTOR, call=eqx.filter_jit(lambda mlp, x: mlp(x))),
    module("MLP, under filter_checkpoint", lambda: nn.MLP(4, 2, 8, 1, key=KEY), VECTOR, call=eqx.filter_checkpoint(
        lambda mlp, x: mlp(x))),
    module("GRUCell", lambda: nn.GRUCell(4, 3, key=KEY), normal(3), SEQUENCE, call=scanned),
    module("LSTMCell", lambda: nn.LSTMCell(4, 3, key=KEY), (normal(3), normal(3, seed=1)), SEQUENCE, call=scanned),
    module("Sequential", lambda: nn.Sequential([nn.Linear(4, 5, key=KEY), nn.Lambda(jnp.tanh)]), VECTOR),
    module("Shared", lambda: nn.Linear(4, 4, key=KEY), VECTOR, call=lambda layer, x: layer(jnp.sin(layer(x)))),
]  # fmt: skip


@one_test_each(PROGRAMS)
def test_agrees_with_jax_grad(program):
    check(program)


def test_layers_that_keep_a_state():
    for make, args in (
        (lambda: nn.BatchNorm(4, "batch", mode="batch"), normal(6, 4, 5)),
        (lambda: nn.SpectralNorm(nn.Linear(4, 3, key=KEY), "weight", key=KEY), normal(6, 4)),
    ):
        fun, params, state, args = with_state(make, jnp.asarray(args, jnp.float32))
        loss = lambda params, x, fun=fun, state=state: jnp.sum(jnp.sin(fun(params, state, x)[0]))
        ours, theirs = (m.grad(loss, (0, 1))(params, *args) for m in (fbp, jax))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert jnp.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_filtered_transformations_of_equinox_around_ours():
    model = nn.MLP(4, 1, 8, 1, key=KEY)
    loss = lambda model, x: jnp.sum(jax.vmap(model)(x) ** 2)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    step = eqx.filter_jit(fbp.grad(lambda params, x: loss(eqx.combine(params, static), x)))
    x = jnp.asarray(SEQUENCE, jnp.float32)
    theirs = eqx.filter(eqx.filter_grad(loss)(model, x), eqx.is_inexact_array)
    for a, b in zip(jax.tree.leaves(step(params, x)), jax.tree.leaves(theirs), strict=True):
        assert jnp.allclose(a, b, rtol=1e-5)
