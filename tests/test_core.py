import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.core import unbroadcast


def test_a_rulebook_is_immutable_and_equal_by_content():
    double = fbp.table(lambda g: 2 * g)
    ours = fbp.RULES | {lax.neg_p: double}
    assert ours[lax.neg_p] is double and fbp.RULES[lax.neg_p] is not double
    assert ours == fbp.RULES | {lax.neg_p: double} and hash(ours) == hash(fbp.RULES | {lax.neg_p: double})
    assert ours != fbp.RULES and ours | {lax.neg_p: fbp.RULES[lax.neg_p]} == fbp.RULES
    with pytest.raises(TypeError):
        fbp.RULES[lax.neg_p] = double  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize("rules", [{"tanh": fbp.table(lambda g: g)}, {lax.neg_p: lambda g: g}])
def test_a_rulebook_takes_primitives_and_rules_only(rules):
    with pytest.raises(TypeError, match="maps primitives to rules"):
        fbp.RULES | rules


def test_a_table_names_its_residuals_and_parameters():
    rule = fbp.table(lambda g, b, y: g * b * y, None)
    assert fbp.grad(lambda x: x * 3.0, rules=fbp.RULES | {lax.mul_p: rule})(2.0) == 18.0
    scale = fbp.table(lambda g, *, site, new_dtype: g.astype(site.avals[0].dtype) if new_dtype == jnp.float16 else None)
    as_half = lambda x: lax.convert_element_type(x, jnp.float16)
    assert fbp.vjp(as_half, 2.0, rules=fbp.RULES | {lax.convert_element_type_p: scale})[1](jnp.float16(1)) == (1.0,)
    with pytest.raises(TypeError, match=r"reads \['z'\]"):
        fbp.table(lambda g, z: g)


def test_a_table_keeps_what_a_wanted_column_reads():
    x, w = jnp.ones(3), jnp.arange(3.0)
    assert len(jax.tree.leaves(fbp.vjp(lambda x, w: x * w, x, w)[1])) == 2
    (kept,) = jax.tree.leaves(fbp.vjp(lambda x: x * w, x)[1])
    assert kept is w
    assert not jax.tree.leaves(fbp.vjp(lambda x, w: x + w, x, w)[1])


def test_unbroadcast_sums_over_copies():
    g = jnp.arange(6.0).reshape(2, 3)
    assert unbroadcast(g, jax.typeof(jnp.ones(()))) == 15
    assert unbroadcast(g, jax.typeof(jnp.ones((2, 1)))).tolist() == [[3.0], [12.0]]
    assert unbroadcast(g, jax.typeof(g)) is g and unbroadcast(None, jax.typeof(g)) is None


@fbp.op
def scaled(x, y, *, factor):
    """factor x y, and factor x"""
    return {"product": factor * x * y, "x": factor * x}


def program(x, y):
    return scaled(jnp.sin(x), y, factor=3.0)


X, Y = jnp.array([0.3, -1.0]), jnp.array([2.0, 0.5])


def assert_close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_an_op_without_a_rule_is_the_code_inside():
    def plain(x, y):
        return {"product": 3.0 * jnp.sin(x) * y, "x": 3.0 * jnp.sin(x)}

    assert_close(program(X, Y), plain(X, Y))
    assert_close(jax.jit(program)(X, Y), plain(X, Y))
    assert_close(jax.vmap(program)(X, Y), plain(X, Y))
    assert_close(jax.vmap(program, (None, 0))(X, Y), jax.vmap(plain, (None, 0))(X, Y))
    assert_close(jax.jvp(program, (X, Y), (Y, X)), jax.jvp(plain, (X, Y), (Y, X)))
    for vjp in (jax.vjp, fbp.vjp):
        assert_close(vjp(program, X, Y)[1](plain(X, Y)), jax.vjp(plain, X, Y)[1](plain(X, Y)))


def test_a_rule_for_an_op_is_applied_where_it_is_met():
    def forward(site, x, y, *, factor):
        return scaled.bind(x, y, factor=factor), y

    def backward(site, y, product_bar, x_bar, *, factor):
        return [x_bar * factor * 10, None]

    rules = fbp.RULES | {scaled: fbp.Rule(forward, backward)}
    for wrapped in (program, jax.jit(program), jax.jit(jax.checkpoint(program))):
        x_bar, y_bar = fbp.grad(lambda x, y, f=wrapped: jnp.sum(f(x, y)["x"]), (0, 1), rules=rules)(X, Y)
        assert_close((x_bar, y_bar), (30.0 * jnp.cos(X), jnp.zeros(2)))
    assert_close(fbp.grad(lambda x: program(x, 1.0)["x"])(0.3), 3.0 * jnp.cos(0.3))


def test_an_op_by_a_table():
    @fbp.op
    def cube(x):
        return x**3

    rules = fbp.RULES | {cube: fbp.table(lambda g, x: 100 * g * x)}
    assert float(fbp.grad(lambda x: 2 * cube(x), rules=rules)(3.0)) == 600


def tenfold(site, x, y):
    return [x * y], (x, y)


@fbp.op(rule=fbp.Rule(tenfold, lambda site, residuals, g: [10 * g * residuals[1], 10 * g * residuals[0]]))
def product(x, y):
    return x * y


def test_an_op_has_a_rule_of_its_own_which_the_rulebook_may_replace():
    assert fbp.grad(product, (0, 1))(2.0, 3.0) == (30.0, 20.0)
    assert jax.grad(product, (0, 1))(2.0, 3.0) == (3.0, 2.0)
    other = fbp.RULES | {product: fbp.table(lambda g, y: g + y, None)}
    assert fbp.grad(jax.jit(product), (0, 1), rules=other)(2.0, 3.0) == (7.0, 0.0)


def test_a_mapped_op_has_its_rule_mapped():
    xs, y = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([5.0, 6.0])
    for axes, columns in (((0, None), xs), ((1, None), xs.T)):
        mapped = lambda x, y, axes=axes: jnp.sum(jax.vmap(product, axes)(x, y))
        x_bar, y_bar = fbp.grad(mapped, (0, 1))(columns, y)
        assert (
            x_bar.tolist()
            == (10 * jnp.broadcast_to(y, xs.shape) if axes[0] == 0 else 10 * jnp.stack([y, y], 1)).tolist()
        )
        assert y_bar.tolist() == [40.0, 60.0]
    twice = lambda x, y: jnp.sum(jax.vmap(jax.vmap(product, (0, None)), (0, None))(x, y[0]))
    assert fbp.grad(twice, 1)(xs, y).tolist() == [100.0, 0.0]
    assert jax.vmap(fbp.grad(product, 1), (0, None))(xs[0], 2.0).tolist() == [10.0, 20.0]
