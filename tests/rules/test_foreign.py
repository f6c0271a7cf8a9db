import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse
from jax.extend.core import Primitive, primitives
from jax.interpreters import ad, batching, mlir

import fbp

X = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def primitive(name, fun):
    """A primitive as a library defines it."""
    p = Primitive(name)
    p.def_impl(fun)
    p.def_abstract_eval(lambda *avals, **params: jax.make_jaxpr(lambda *xs: fun(*xs, **params))(*avals).out_avals[0])
    mlir.register_lowering(p, mlir.lower_fun(fun, multiple_results=False))
    batching.primitive_batchers[p] = lambda xs, axes, **params: (p.bind(*xs, **params), axes[0])
    return p


wave_p = primitive("wave", jnp.sin)
ad.defjvp(wave_p, lambda dot, x: 10 * dot * jnp.cos(x))

swapped_p = primitive("swapped", lambda x, *, factor: factor * x[::-1])
ad.deflinear(swapped_p, lambda y_bar, *, factor: [factor * y_bar[::-1]])


def program(x):
    return jnp.sum(swapped_p.bind(wave_p.bind(x) * x, factor=3.0) * jnp.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_a_primitive_of_another_library(wrap):
    expected = jax.grad(program)(X)
    np.testing.assert_allclose(fbp.grad(wrap(program))(X), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(fbp.grad(wrap(program)))(X), expected, rtol=1e-6)


def test_second_derivatives():
    second = lambda grad: grad(lambda x: jnp.sum(grad(program)(x) ** 2))(X)
    np.testing.assert_allclose(second(fbp.grad), second(jax.grad), rtol=1e-5)


def test_a_sparse_matrix():
    matrix = sparse.BCOO.fromdense(jnp.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]))

    def fun(data, x):
        return jnp.sum(jnp.sin(sparse.BCOO((data, matrix.indices), shape=matrix.shape) @ x))

    for ours, theirs in zip(*(grad(fun, (0, 1))(matrix.data, X.T) for grad in (fbp.grad, jax.grad)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_an_input_that_has_no_tangents():
    ordered_p = Primitive("ordered")
    ordered_p.def_impl(lambda x, token: 2 * x)
    ordered_p.def_abstract_eval(lambda x, token: x)
    ad.defjvp(ordered_p, lambda dot, x, token: 2 * dot, None)
    gradient = lambda grad: grad(lambda x: jnp.sum(ordered_p.bind(x, jax.lax.create_token()) ** 2))(X)
    np.testing.assert_allclose(gradient(fbp.grad), gradient(jax.grad))


def test_without_a_transpose_it_is_an_error():
    half_p = primitive("half", lambda x: x / 2)
    ad.defjvp(half_p, lambda dot, x: half_p.bind(dot))
    with pytest.raises(NotImplementedError, match=r"'half'.*no transpose"):
        fbp.grad(half_p.bind)(1.0)


def test_a_rule_of_ours_comes_first():
    rules = fbp.RULES | {wave_p: fbp.table(lambda g, x: g * x)}
    assert float(fbp.grad(lambda x: wave_p.bind(x), rules=rules)(7.0)) == 7.0


def test_of_what_jax_has_nothing_is_borrowed():
    own = [p for p in vars(primitives).values() if isinstance(p, Primitive)]
    assert len(own) > 170 and not [p for p in own if fbp.RULES.find(p) is not fbp.RULES.get(p)]
