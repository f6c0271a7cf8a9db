import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.check.cases.ordering import CASES
from fbp.check.suite import check_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def assert_same(fun, *xs):
    np.testing.assert_array_equal(fbp.grad(fun)(*xs), jax.grad(fun)(*xs))


X = jnp.array([3.0, 1.0, 2.0, 1.0])
W = jnp.arange(4.0)


def test_a_sort_sends_each_cotangent_back_to_its_place():
    np.testing.assert_array_equal(fbp.grad(lambda x: jnp.sum(jnp.sort(x) * W))(X), [3, 0, 2, 1])


def test_equal_keys_keep_their_order_as_in_jax():
    assert_same(lambda x: jnp.sum(jnp.sort(x) * W), jnp.ones(4))
    assert_same(lambda x: jnp.sum(lax.sort((x, x * x), num_keys=1)[1] * W), X)


def test_the_largest_get_the_cotangent():
    np.testing.assert_array_equal(fbp.grad(lambda x: jnp.sum(lax.top_k(x, 2)[0]))(X), [1, 0, 1, 0])


def test_places_have_no_gradient():
    assert fbp.grad(lambda x: x[jnp.argmax(x)] * 1.0)(X).tolist() == [1, 0, 0, 0]


def test_what_is_sorted_may_be_explicitly_sharded():
    """Which JAX's own rule is not made for."""
    loss = lambda x: jnp.sum(jnp.sort(x, axis=1)[:, 0] ** 2)
    x = jnp.cos(jnp.arange(8.0)).reshape(4, 2)
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        rows = jax.device_put(x, jax.NamedSharding(mesh, jax.sharding.PartitionSpec("i", None)))
        gradient = fbp.grad(loss)(rows)
    assert gradient.sharding == rows.sharding
    assert jnp.array_equal(gradient, jax.grad(loss)(x))
