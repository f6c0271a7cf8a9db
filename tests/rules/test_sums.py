import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

import fbp


def states(w, u, xs, reverse=False):
    """h_t = tanh(W h_{t-1} + U x_t)."""
    start = jnp.zeros((xs.shape[1], w.shape[0]), w.dtype)
    return lax.scan(lambda h, x: (jnp.tanh(h @ w + x @ u),) * 2, start, xs, reverse=reverse)[1]


def arguments(length=5, batch=2, features=8, inputs=8):
    rng = np.random.default_rng(0)
    shapes = (features, features), (inputs, features), (length, batch, inputs)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) / 3 for shape in shapes]


def loss(*args, **options):
    return jnp.sum(jnp.sin(states(*args, **options)))


def products_in_loops(fun, *args):
    """How many products the steps of all loops compute."""

    def count(jaxpr, inside):
        total = 0
        for eqn in jaxpr.eqns:
            total += inside and eqn.primitive is lax.dot_general_p
            for inner in jaxprs_in_params(eqn.params):
                total += count(inner, inside or eqn.primitive is lax.scan_p)
        return total

    return count(jax.make_jaxpr(fun)(*args).jaxpr, False)


def assert_same(fun, *args, argnums=(0, 1, 2)):
    for ours, theirs in zip(fbp.grad(fun, argnums)(*args), jax.grad(fun, argnums)(*args), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_products_of_small_batches_come_after_the_loop():
    gradient = fbp.grad(loss, (0, 1, 2))
    # Forward h W and x U; backward g Wᵀ and g Uᵀ, but neither hᵀ g nor xᵀ g.
    assert products_in_loops(gradient, *arguments(batch=2)) == 4
    assert products_in_loops(gradient, *arguments(batch=20)) == 6  # a step would keep more than it would add to W̄
    assert products_in_loops(jax.grad(loss, (0, 1, 2)), *arguments(batch=2)) == 6


@pytest.mark.parametrize("length", [0, 1, 5])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_sums_are_the_same(length, reverse):
    assert_same(lambda *args: loss(*args, reverse=reverse), *arguments(length))


def test_a_sum_may_be_a_linear_map_of_the_product():
    def gates(w, u, xs):
        return loss(w, jnp.concatenate([u[:, :4], -u.T[:, 4:]], 1), xs)

    def inside(w, u, xs):
        def step(h, x):
            kernel = jnp.concatenate([w, u[:, ::-1]], 0).T.reshape(8, 16)
            return (jnp.tanh(jnp.concatenate([h, x], 1) @ kernel.T),) * 2

        return jnp.sum(lax.scan(step, jnp.zeros((2, 8)), xs)[1] ** 2)

    assert_same(gates, *arguments())
    assert_same(inside, *arguments())


def test_a_weight_used_twice_in_a_step():
    def twice(w, u, xs):
        return jnp.sum(lax.scan(lambda h, x: (jnp.tanh(jnp.tanh(h @ w) @ w + x @ u),) * 2, jnp.zeros((2, 8)), xs)[1])

    assert_same(twice, *arguments())


def test_a_batched_product():
    w, u, xs = arguments()

    def heads(w, u, xs):
        w = jnp.stack([w, u])
        step = lambda h, x: (jnp.tanh(jnp.einsum("nbi,nij->nbj", h, w) + x),) * 2
        return jnp.sum(lax.scan(step, jnp.zeros((2, 2, 8)), xs)[1] ** 3)

    assert_same(heads, w, u, xs)


def test_under_vmap_and_differentiated_again():
    w, u, xs = arguments()
    both = jnp.stack([w, 2 * w])
    ours, theirs = (jax.vmap(grad(loss), (0, None, None))(both, u, xs) for grad in (fbp.grad, jax.grad))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

    def slope(grad):
        return lambda w: jnp.sum(grad(loss)(w, u, xs) ** 2)

    np.testing.assert_allclose(fbp.grad(slope(fbp.grad))(w), jax.grad(slope(jax.grad))(w), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.grad(slope(fbp.grad))(w), jax.grad(slope(jax.grad))(w), rtol=1e-4, atol=1e-5)
