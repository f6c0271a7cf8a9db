import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.check.cases.reductions import CASES
from fbp.check.suite import check_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def assert_same(fun, *xs):
    np.testing.assert_array_equal(fbp.grad(fun)(*xs), jax.grad(fun)(*xs))


def kept(fun, *xs):
    """What the backward pass keeps."""
    return jax.tree.leaves(fbp.vjp(fun, *xs)[1])


X = jnp.array([[1.0, 3.0, 3.0], [2.0, 0.0, 2.0]])


def test_equal_maxima_share_the_cotangent():
    np.testing.assert_array_equal(fbp.grad(lambda x: jnp.sum(jnp.max(x, 1)))(X), [[0, 0.5, 0.5], [0.5, 0, 0.5]])
    assert_same(lambda x: jnp.sum(jnp.min(x, 0)), X)


@pytest.mark.parametrize("x", [[2.0, 3.0], [0.0, 3.0], [0.0, 0.0, 3.0]])
def test_a_product_with_zeros_among_its_factors(x):
    x = jnp.array(x)
    np.testing.assert_allclose(fbp.grad(jnp.prod)(x), jax.grad(jnp.prod)(x), rtol=1e-6)


def test_a_sum_keeps_nothing():
    assert kept(lambda x: lax.reduce_sum_p.bind(x, axes=(0,), out_sharding=None), X) == []


def test_an_empty_sum_has_an_empty_gradient():
    assert fbp.grad(jnp.sum)(jnp.ones((0, 3))).shape == (0, 3)


def test_norms_at_zero_are_what_jax_says():
    assert_same(lambda x: jnp.sqrt(jnp.sum(x * x)), jnp.zeros(3))
    assert_same(jnp.linalg.norm, jnp.zeros(3))


@pytest.mark.parametrize("reduce", [jnp.max, jnp.min, jnp.ptp])
def test_the_largest_of_what_is_not_a_number_has_no_number_for_a_gradient(reduce):
    x = jnp.array([1.0, jnp.nan, 3.0])
    assert jnp.isnan(jax.grad(reduce)(x)).all() and jnp.isnan(fbp.grad(reduce)(x)).all()
