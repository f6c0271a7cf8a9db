import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

import fbp
from fbp import _compat, chains
from fbp.chains import Chains, written_down


def normal(*shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(len(shape)).standard_normal(shape), jnp.float32)


def norm(x):
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


def before_norm(x, w):
    return x + jax.nn.gelu(norm(x) @ w)


def after_relu(x, w):
    return jax.nn.relu(x + x @ w)


def gated(x, w):
    gate = jax.nn.sigmoid(x @ w)
    return gate * x + (1 - gate) * jnp.tanh(x @ w.T)


def net(block):
    def loss(ws, x):
        for w in ws:
            x = block(x, w)
        return jnp.mean(x**2)

    return loss


def weights(depth, width=64):
    return [normal(width, width, scale=0.1) * (1 + i / depth) for i in range(depth)]


def program(fun, *args):
    return jax.jit(fun).lower(*args).compile().as_text().count("\n")


@pytest.mark.parametrize("block", [before_norm, after_relu, gated])
def test_programs_grow_with_the_depth_and_not_with_its_square(block):
    """Of 24 layers about 3 times as many lines as of 8; under jax.grad of these nets about 5 times."""
    x = normal(128, 64)
    short, long = (program(fbp.value_and_grad(net(block)), weights(depth), x) for depth in (8, 24))
    assert long < 3.5 * short


@pytest.mark.parametrize("block", [before_norm, after_relu, gated])
def test_gradients_are_the_same(block):
    ws, x = weights(12), normal(128, 64)
    ours, theirs = (jax.jit(grad(net(block), (0, 1)))(ws, x) for grad in (fbp.grad, jax.grad))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


def test_under_transformations():
    ws, x = weights(10), normal(2, 128, 64)
    loss, near = net(before_norm), {"rtol": 1e-4, "atol": 1e-7}
    ours, theirs = fbp.grad(loss, 1), jax.grad(loss, 1)
    np.testing.assert_allclose(jax.vmap(ours, (None, 0))(ws, x), jax.vmap(theirs, (None, 0))(ws, x), **near)
    tangent = lambda grad: jax.jit(lambda x: jax.jvp(lambda x: grad(ws, x), (x,), (x,))[1])(x[0])
    np.testing.assert_allclose(tangent(ours), tangent(theirs), rtol=1e-3, atol=1e-6)
    for outer in (fbp.grad, jax.grad):
        twice = lambda grad, outer=outer: jax.jit(outer(lambda x: jnp.sum(grad(ws, x) ** 2)))(x[0])
        np.testing.assert_allclose(twice(ours), twice(theirs), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("value", [0.0, -0.0, jnp.inf, jnp.nan, -2.5])
def test_what_is_written_down_is_the_same_to_the_bit(value):
    x = normal(3, 4).at[0, 0].set(value)
    np.testing.assert_array_equal(jax.jit(written_down)(x).view(jnp.uint32), x.view(jnp.uint32))
    primal, tangent = jax.jvp(written_down, (x,), (x + 1,))
    np.testing.assert_array_equal(primal, x)
    np.testing.assert_array_equal(tangent, x + 1)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(3 * written_down(x)))(jnp.ones(3)), 3 * jnp.ones(3))


def cuts(fun, *xs):
    primitive = lax.optimization_barrier_p if _compat.KEEPS_BARRIERS else lax.while_p

    def inside(jaxpr):
        here = sum(eqn.primitive is primitive for eqn in jaxpr.eqns)
        return here + sum(inside(inner) for eqn in jaxpr.eqns for inner in jaxprs_in_params(eqn.params))

    return inside(jax.make_jaxpr(fun)(*xs).jaxpr)


def total(*xs):
    """The sum of many arrays, one after the other."""
    return jnp.sum(jnp.sin(sum(xs[1:], xs[0])))


def test_a_sum_is_cut_after_so_many():
    xs = [normal(128, 64) + i for i in range(2 * chains.MOST + 2)]
    assert cuts(fbp.grad(total), *xs[: chains.MOST]) == 0
    assert cuts(fbp.grad(total), *xs[: chains.MOST + 1]) == 1
    assert cuts(fbp.grad(total), *xs) == 2


def test_a_net_is_cut_once_in_so_many_layers_each_way():
    """Not within gelu's pullback, whose sums have but two arrays more than the cotangent that comes to it."""
    residual, depth = net(lambda x, w: x + 0.1 * jax.nn.gelu(x @ w)), 3 * chains.MOST
    assert cuts(fbp.grad(residual), weights(depth), normal(128, 64)) <= 2 * 3
    assert cuts(fbp.grad(residual, rules=fbp.RULES.recomputing([])), weights(depth), normal(128, 64)) == 0


def test_what_is_small_or_known_is_not_cut():
    small = [normal(8, 8) + i for i in range(3 * chains.MOST)]
    assert cuts(fbp.grad(total), *small) == 0
    seen = Chains(is_cut=True)
    xs = [normal(128, 64) + i for i in range(3 * chains.MOST)]
    assert seen.elementwise([xs[-1]], xs) == [xs[-1]]


def test_a_batch_that_has_no_number_yet():
    """As jax.export takes it; neither what is computed again nor what is cut asks for its size."""
    (n,) = jax.export.symbolic_shape("n")
    ws, x = weights(12), normal(128, 64)
    of_any = jax.ShapeDtypeStruct((n, 64), x.dtype)
    exported = jax.export.export(jax.jit(fbp.grad(net(before_norm))))(ws, of_any)
    for a, b in zip(exported.call(ws, x), jax.jit(jax.grad(net(before_norm)))(ws, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))
