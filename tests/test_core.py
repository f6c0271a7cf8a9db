import jax
import jax.numpy as jnp
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
