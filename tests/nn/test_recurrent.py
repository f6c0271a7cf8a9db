import flax.linen as linen
import jax
import jax.numpy as jnp
import pytest

from fbp import nn
from tests.nn.reference import assert_same_as_flax, normal

X = normal(2, 5, 3)
CELLS = {
    "simple": (nn.simple_cell, linen.SimpleCell),
    "lstm": (nn.lstm_cell, linen.LSTMCell),
    "gru": (nn.gru_cell, linen.GRUCell),
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reverse": True},
        {"reverse": True, "keep_order": True},
        {"return_carry": True},
        {"time_major": True, "unroll": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", CELLS)
def test_rnn(cell, options):
    ours, flax = CELLS[cell]
    reference = lambda dtype: linen.RNN(flax(4, param_dtype=dtype), **options)
    assert_same_as_flax(nn.rnn(ours(4), **options), reference, X)


def test_a_cell_computes_in_the_dtype_it_is_given():
    layer = nn.rnn(nn.lstm_cell(4, dtype=jnp.bfloat16))
    params, state = layer.init(jax.random.key(0), X)
    assert layer.apply(params, state, jnp.asarray(X, jnp.float32))[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_all_steps_as_one_operation_are_the_cell_step_by_step(cell, reverse):
    cell = CELLS[cell][0](4)
    params, state = nn.rnn(cell).init(jax.random.key(0), X)
    params = jax.tree.map(lambda p: p + 0.1, params)
    assert cell.over_time is not None
    one, steps = (
        nn.rnn(c, return_carry=True, reverse=reverse).apply(params, state, jnp.asarray(X, jnp.float32))[0]
        for c in (cell, cell._replace(over_time=None))
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(steps), strict=True):
        assert jnp.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_with_another_activation_goes_step_by_step(cell):
    ours, flax = CELLS[cell]
    assert ours(4, activation_fn=jax.nn.relu).over_time is None
    reference = lambda dtype: linen.RNN(flax(4, activation_fn=jax.nn.relu, param_dtype=dtype))
    assert_same_as_flax(nn.rnn(ours(4, activation_fn=jax.nn.relu)), reference, X)
