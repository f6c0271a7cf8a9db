import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.check.cases.elementwise import CASES
from fbp.check.suite import check_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def assert_same(fun, *xs):
    np.testing.assert_array_equal(fbp.grad(fun)(*xs), jax.grad(fun)(*xs))


def kept(fun, *xs):
    """What the backward pass keeps."""
    return jax.tree.leaves(fbp.vjp(fun, *xs)[1])


X = jnp.linspace(-2.0, 2.0, 5)


def test_the_cotangent_of_a_copy_is_a_copy():
    y, pullback = fbp.vjp(jnp.copy, X)
    (x_bar,) = pullback(y)
    assert x_bar.unsafe_buffer_pointer() != y.unsafe_buffer_pointer()
    np.testing.assert_array_equal(x_bar, y)


@pytest.mark.parametrize(
    "fun, x",
    [
        (jnp.sqrt, 0.0),
        (jnp.abs, 0.0),
        (jnp.log1p, -1.0),
        (jnp.log, 0.0),
        (jnp.arcsin, 1.0),
        (lax.rsqrt, 0.0),
        (jax.nn.relu, 0.0),
        (lambda x: x**0, 0.0),
        (lambda x: x**2, 0.0),
        (lambda x: x**0.5, 0.0),
        (lambda x: 0.0**x, 0.0),
        (jnp.sign, 0.0),
        (jnp.cbrt, 0.0),
        (lambda x: jnp.maximum(x, 1.0), 1.0),
        (lambda x: jnp.minimum(1.0, x), 1.0),
        (lambda x: jnp.clip(x, 0.0, 1.0), 1.0),
        (lambda x: jnp.where(x > 0, x, 0.0), 0.0),
        (jnp.tanh, jnp.inf),
        (jnp.exp, -jnp.inf),
        (lambda x: jnp.arctan2(x, 0.0), 0.0),
    ],
)
def test_at_the_edge_of_its_domain_it_is_what_jax_says(fun, x):
    assert_same(fun, x)


def test_a_tie_is_shared():
    both = fbp.grad(lambda x, y: jnp.maximum(x, y), (0, 1))(2.0, 2.0)
    assert both == (0.5, 0.5)


def test_the_output_is_kept_where_it_says_enough():
    y, pullback = fbp.vjp(lax.tanh, X)
    assert kept(lax.exp, X) != [] and jax.tree.leaves(pullback)[0] is y


def test_a_product_with_one_wanted_side_keeps_one_array_and_a_sum_none():
    y = X + 1
    (only,) = kept(lambda x: lax.mul(x, y), X)
    assert only is y and kept(lax.add, X, y) == [] and kept(lax.sub, X, y) == [] and kept(lax.neg, X) == []


def test_what_has_no_derivative_stops_the_cotangent():
    assert fbp.grad(lambda x: jnp.floor(x) + lax.stop_gradient(x))(1.5) == 0.0
    assert kept(lambda x: jnp.round(x), X) == []


def test_a_cotangent_of_a_complex_input_is_jax_s():
    x = jnp.asarray(1.0 + 2.0j)
    for fun in (lambda x: jnp.real(x * x), lambda x: jnp.abs(x), lambda x: jnp.imag(jnp.conj(x) * jnp.exp(x))):
        assert_same(fun, x)
    np.testing.assert_allclose(fbp.grad(jnp.sin, holomorphic=True)(x), jnp.cos(x), rtol=1e-6)


def test_slopes_are_exact_where_their_formulas_would_lose_digits_or_overflow():
    assert fbp.grad(lax.expm1)(-30.0) == pytest.approx(np.exp(-30.0), rel=1e-5)
    assert fbp.grad(lax.asinh)(-1e30) == pytest.approx(1e-30, rel=1e-6)
    assert fbp.grad(lax.acosh)(1e30) == pytest.approx(1e-30, rel=1e-6)
    assert fbp.grad(lax.asinh)(jnp.inf) == 0 and fbp.grad(fbp.grad(lax.asinh))(0.0) == 0
