import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.check.cases.shapes import CASES
from fbp.check.suite import check_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def kept(fun, *xs):
    """What the backward pass keeps."""
    return jax.tree.leaves(fbp.vjp(fun, *xs)[1])


X = jnp.arange(6.0).reshape(2, 3)


def test_moving_numbers_keeps_nothing():
    moves = [
        lambda x: lax.reshape(x, (3, 2)), lambda x: lax.transpose(x, (1, 0)), lambda x: lax.rev(x, (0,)),
        lambda x: lax.broadcast_in_dim(x, (4, 2, 3), (1, 2)), lambda x: lax.pad(x, 0.0, [(1, 0, 1), (0, 2, 0)]),
        lambda x: lax.concatenate([x, x], 0), lambda x: lax.slice(x, (0, 1), (2, 3)), lambda x: lax.squeeze(x[None], (0,)),
    ]  # fmt: skip
    for move in moves:
        assert kept(move, X) == []


def test_a_broadcast_sums_over_its_copies():
    assert fbp.grad(lambda x: jnp.sum(jnp.broadcast_to(x, (4, 2, 3))))(X).tolist() == [[4.0] * 3] * 2


def test_negative_padding_cuts():
    fun = lambda x: jnp.sum(lax.pad(x, 2.0, [(-1, 0, 0), (1, -1, 1)]) ** 2)
    np.testing.assert_array_equal(fbp.grad(fun)(X), jax.grad(fun)(X))


def test_a_change_of_dtype_changes_it_back():
    bar = fbp.vjp(lambda x: x.astype(jnp.bfloat16), X)[1](jnp.ones((2, 3), jnp.bfloat16))[0]
    assert bar.dtype == jnp.float32
    assert fbp.vjp(lambda x: x.astype(int), X)[1](np.zeros((2, 3), jax.dtypes.float0))[0].tolist() == [[0.0] * 3] * 2
