import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.check.cases.products import CASES
from fbp.check.suite import check_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def kept(fun, *xs):
    """What the backward pass keeps."""
    return jax.tree.leaves(fbp.vjp(fun, *xs)[1])


def assert_same(fun, *xs):
    for argnum in range(len(xs)):
        ours, theirs = fbp.grad(fun, argnum)(*xs), jax.grad(fun, argnum)(*xs)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def test_one_wanted_side_keeps_the_other():
    x, w = normal(3, 4), normal(4, 5)
    (only,) = kept(lambda w: lax.dot(x, w), w)
    assert only is x


def test_the_cotangents_of_a_product_of_matrices():
    x, w, g = normal(3, 4), normal(4, 5), normal(3, 5)
    x_bar, w_bar = fbp.vjp(lax.dot, x, w)[1](g)
    np.testing.assert_allclose(x_bar, g @ w.T, rtol=1e-5)
    np.testing.assert_allclose(w_bar, x.T @ g, rtol=1e-5)


def test_the_accumulation_dtype_is_kept_out_of_the_cotangents():
    x, w = normal(3, 4).astype(jnp.bfloat16), normal(4, 5).astype(jnp.bfloat16)
    fun = lambda x, w: jnp.sum(lax.dot(x, w, preferred_element_type=jnp.float32))
    assert [bar.dtype for bar in fbp.grad(fun, (0, 1))(x, w)] == [jnp.bfloat16] * 2


def test_the_cotangent_of_the_weights_of_attention_is_not_transposed():
    """Larger than its factors, it comes in the order of its axes: einsum makes of it the right one."""
    weights, value = jnp.ones((2, 4, 64, 64)), jnp.ones((2, 64, 4, 8))
    mix = lambda weights: jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    program = jax.make_jaxpr(fbp.grad(lambda weights: jnp.sum(mix(weights) ** 2)))(weights)
    moved = [eqn.outvars[0].aval.size for eqn in program.eqns if eqn.primitive is lax.transpose_p]
    assert max(moved) < weights.size
