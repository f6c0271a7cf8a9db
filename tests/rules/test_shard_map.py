import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import fbp
from fbp.check.cases.shard_map import CASES
from fbp.check.suite import check_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


@pytest.mark.parametrize("check_vma", [True, False])
def test_examples_of_a_vmap_around_it_may_be_spread_along_an_axis_of_the_mesh(check_vma):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    options = {"mesh": mesh, "in_specs": PartitionSpec("y"), "out_specs": PartitionSpec(), "check_vma": check_vma}
    fun = jax.shard_map(lambda x: jnp.sin(jax.lax.psum(jnp.sum(x * x), "y")), **options)
    x = jnp.arange(16.0).reshape(4, 4)
    gradient = jax.vmap(fbp.grad(fun), spmd_axis_name="x")(x)
    np.testing.assert_allclose(gradient, jax.vmap(jax.grad(fun), spmd_axis_name="x")(x), rtol=1e-6)


def test_an_array_from_outside_that_is_not_read_has_a_zero_gradient_inside():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    w = jax.device_put(jnp.ones((4, 8)), jax.NamedSharding(mesh, PartitionSpec()))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec(), check_vma=False
    )
    def gradient(x):
        return fbp.grad(lambda w, x: jnp.sum(x))(w, x)

    assert not jax.jit(gradient)(jnp.ones(4)).any()


def test_a_cotangent_does_not_vary_where_the_output_does_not():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))

    def pulled(x, y_bar):
        return fbp.vjp(jnp.sin, x)[1](y_bar)

    specs = {"in_specs": (PartitionSpec(), PartitionSpec("x")), "out_specs": PartitionSpec("x")}
    with pytest.raises(ValueError, match=r"unexpected JAX type.*float32\[2\]\{V:x\}, but expected float32\[2\]"):
        jax.shard_map(pulled, mesh=mesh, **specs)(jnp.ones(2), jnp.ones(4))


@pytest.mark.parametrize("jit", [lambda fun: fun, jax.jit])
def test_the_cotangent_of_a_reduced_value_is_unreduced(jit):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))
    reduced, unreduced = PartitionSpec(reduced={"x"}), PartitionSpec(unreduced={"x"})
    with jax.set_mesh(mesh):
        w = jax.device_put(jnp.arange(1.0, 4.0), reduced)
        x = jax.device_put(jnp.arange(6.0), PartitionSpec("x"))

        @functools.partial(jax.shard_map, out_specs=unreduced)
        def loss(w, x):
            return jax.lax.pcast(jnp.sum(jnp.sin(w) * x), "x", to="unreduced")

        w_bar, x_bar = jit(fbp.grad(loss, (0, 1)))(w, x)
        assert jax.typeof(w_bar).sharding.spec == unreduced.update(partitions=(None,))
        np.testing.assert_allclose(
            jax.reshard(w_bar, PartitionSpec()), np.cos([1.0, 2.0, 3.0]) * [3.0, 5.0, 7.0], rtol=1e-6
        )
        np.testing.assert_allclose(x_bar, np.tile(np.sin([1.0, 2.0, 3.0]), 2), rtol=1e-6)

        constant = jax.shard_map(lambda w: jnp.sum(jax.lax.stop_gradient(w)), out_specs=reduced)
        unread = jit(fbp.grad(constant))(w)
        assert jax.typeof(unread).sharding.spec == unreduced.update(partitions=(None,))
