import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.check.cases.indexing import CASES
from fbp.check.suite import check_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def assert_same(fun, *xs):
    np.testing.assert_array_equal(fbp.grad(fun)(*xs), jax.grad(fun)(*xs))


X = jnp.arange(5.0)


@pytest.mark.parametrize("mode", ["clip", "fill", "promise_in_bounds"])
def test_out_of_bounds_it_is_what_jax_says(mode):
    places = jnp.array([0, 4, 4, 2] if mode == "promise_in_bounds" else [0, 7, -9, 2])
    assert_same(lambda x: jnp.sum(jnp.nan_to_num(x.at[places].get(mode=mode)) ** 2), X)


@pytest.mark.parametrize("method", ["set", "add", "min", "max"])
def test_scatter(method):
    places, values = jnp.array([1, 3]), jnp.array([2.0, -2.0])
    for argnum in 0, 1:
        fun = lambda *args: jnp.sum(getattr(args[0].at[places], method)(args[1]) ** 2)
        ours, theirs = fbp.grad(fun, argnum)(X, values), jax.grad(fun, argnum)(X, values)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_place_read_twice_gets_both_cotangents():
    assert fbp.grad(lambda x: jnp.sum(x[jnp.array([1, 1, 4])]))(X).tolist() == [0, 2, 0, 0, 1]


def test_a_slice_is_clamped_as_in_jax():
    assert_same(lambda x: jnp.sum(lax.dynamic_slice(x, (4,), (3,)) * jnp.arange(3.0)), X)
    assert_same(lambda x: jnp.sum(lax.dynamic_update_slice(x, x[:2] * 3.0, (4,)) ** 2), X)


def test_an_index_has_no_gradient():
    gradient = fbp.grad(lambda x, i: x[i], (0, 1), allow_int=True)(X, 2)
    assert gradient[0].tolist() == [0, 0, 1, 0, 0] and gradient[1].dtype == jax.dtypes.float0


def test_a_function_applied_in_place_has_no_cotangents():
    with pytest.raises(NotImplementedError, match=r"'scatter'.*applies a function in place.*set\(f\("):
        fbp.grad(lambda x: jnp.sum(x.at[1].apply(jnp.sin)))(jnp.ones(3))
