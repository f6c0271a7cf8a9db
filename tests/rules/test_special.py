import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.check.cases.special import CASES
from fbp.check.suite import check_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def assert_same(fun, *xs):
    np.testing.assert_array_equal(fbp.grad(fun)(*xs), jax.grad(fun)(*xs))


@pytest.mark.parametrize("x", [0.0, -0.5, 30.0, -30.0])
def test_far_out_it_is_what_jax_says(x):
    for fun in (lax.erf, lax.erfc, lax.lgamma, lax.digamma):
        assert_same(fun, x)


def test_erf_inv_reverses_erf():
    x = jnp.linspace(-0.9, 0.9, 5)
    slopes = fbp.grad(lambda x: jnp.sum(lax.erf_inv(lax.erf(x))))(x)
    np.testing.assert_allclose(slopes, 1.0, rtol=1e-5)


def test_a_derivative_that_nobody_knows_is_an_error():
    for fun in (
        lambda a: lax.betainc(a, 1.5, 0.5),
        lambda b: lax.betainc(2.0, b, 0.5),
        lambda n: lax.polygamma(n, 1.5),
    ):
        with pytest.raises(ValueError, match="no derivative with respect to its parameters"):
            fbp.grad(fun)(2.0)
        with pytest.raises(ValueError, match="not supported"):
            jax.grad(fun)(2.0)
