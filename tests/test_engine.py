import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.core import Rule, Stopped
from fbp.engine import Differentiate


def leaves_of_vjp(fun, *xs, **options):
    return jax.tree.leaves(fbp.vjp(fun, *xs, **options)[1])


def test_cotangents_of_a_value_used_twice_add_up():
    assert fbp.grad(lambda x: x * x + x)(3.0) == 7.0


def test_each_array_is_kept_once():
    x = jnp.arange(3.0)
    assert len(leaves_of_vjp(lambda x: (x * x, x * x * x, jnp.tanh(x) * x), x)) == 3  # x, x * x, tanh x
    rules = fbp.RULES.recomputing([])
    assert len(leaves_of_vjp(jax.jit(lambda x: (x * x, x * x * x, jnp.tanh(x) * x)), x, rules=rules)) == 3


def test_constants_are_part_of_the_program_not_residuals():
    assert leaves_of_vjp(lambda x: lax.mul(x, np.arange(3, dtype=np.float32)), jnp.ones(3)) == []


def test_what_no_output_depends_on_is_forgotten():
    def fun(x):
        jnp.tanh(x) * x
        return x + 1.0

    assert leaves_of_vjp(fun, jnp.ones(3)) == []
    assert leaves_of_vjp(lambda x: (x + 1.0, jnp.tanh(x)), jnp.ones(3), has_aux=True) == []


def test_values_stay_concrete():
    seen = []

    def fun(x):
        seen.append((int(x), bool(x > 1), repr(x)))
        for _ in range(int(x)):
            x = x * x
        return x

    assert fbp.grad(fun)(2.0) == 4 * 2.0**3
    assert seen == [(2, True, "Recorded(2.0)")]


def test_an_output_is_stopped_where_no_cotangent_flows_back():
    needs = (True, False)
    ys, pullback = Differentiate(fbp.RULES)(lambda x, y: [x * y, y * y, 1.0], needs, 2.0, 3.0)
    assert [isinstance(y, Stopped) for y in ys] == [False, True, True]
    assert pullback(1.0, None, None) == [3.0, None]
    assert pullback(None, None, None) == [None, None]
    stop = Rule(lambda site, x: (Stopped(lax.neg(x)), ()), lambda site, _, g: [g])
    assert fbp.grad(lambda x: -x + 2 * x, rules=fbp.RULES | {lax.neg_p: stop})(1.0) == 2.0


def test_the_pullback_leaves_a_jit():
    y, pullback = jax.jit(lambda x: fbp.vjp(jnp.tanh, x))(0.5)
    assert jnp.allclose(pullback(1.0)[0], 1 - y * y)
    assert jax.tree.structure(pullback) == jax.tree.structure(jax.tree.map(lambda r: r, pullback))
    rows = jax.vmap(pullback)(jnp.arange(3.0))[0]
    assert jnp.allclose(rows, jnp.arange(3.0) * (1 - y * y))


def test_a_missing_rule_is_named_with_its_place():
    rules = fbp.Rulebook({p: r for p, r in fbp.RULES.items() if p is not lax.neg_p})

    def attention(x):
        with jax.named_scope("attn"):
            return lax.neg(x)

    for inner in attention, jax.jit(attention), lambda x: lax.scan(lambda x, _: (attention(x), None), x, length=2)[0]:

        def model(x, inner=inner):
            with jax.named_scope("decoder"):
                return inner(x)

        with pytest.raises(
            NotImplementedError, match=r"no vjp rule for 'neg' at decoder/.*attn \(.*test_engine.py:\d+.*RULES"
        ):
            fbp.grad(model, rules=rules)(1.0)
    fbp.grad(lambda x: lax.stop_gradient(x) * x, rules=rules)(1.0)


@pytest.mark.parametrize(
    "x_bars, error",
    [([], "0 cotangents for 1 input"), ([jnp.ones(2)], "input 0"), ([jnp.ones((), jnp.float16)], "shape and dtype")],
)
def test_a_wrong_rule_is_told_so(x_bars, error):
    rules = fbp.RULES | {lax.neg_p: Rule(lambda site, x: (lax.neg(x), ()), lambda site, _, g: x_bars)}
    with pytest.raises(TypeError, match=error):
        fbp.grad(lambda x: -x, rules=rules)(1.0)


def test_equal_layers_are_split_once():
    splits = []

    def forward(site, x, **_):
        splits.append(site)
        return lax.tanh(x), x

    @jax.jit
    def layer(x):
        return jnp.tanh(x) * x

    rules = fbp.RULES | {lax.tanh_p: Rule(forward, lambda site, x, g, **_: [g])}

    def model(x):
        for _ in range(12):
            x = layer(x)
        return x

    jax.make_jaxpr(fbp.grad(model, rules=rules))(1.0)
    assert len(splits) == 1


def test_a_leaked_value_is_an_error():
    leaked = []
    fbp.grad(lambda x: leaked.append(x) or x * x)(1.0)
    with pytest.raises(jax.errors.UnexpectedTracerError):
        leaked[0] * 2


def test_residuals_live_no_longer_than_the_pullback():
    """What JAX caches of a function traced meanwhile (relu, in a jit) does not hold on to the record."""
    inner = jax.jit(lambda x: jax.nn.relu(x) * x)
    y, pullback = fbp.vjp(lambda x: jnp.sum(jnp.exp(inner(x))), jnp.ones(3))
    residuals = [weakref.ref(leaf) for leaf in jax.tree.leaves(pullback)]
    assert residuals
    del y, pullback
    gc.collect()
    assert [r() for r in residuals if r() is not None] == []


def test_a_user_error_arrives_untouched():
    def fun(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fbp.grad(fun)(1.0)
    assert fbp.grad(lambda x: x * x)(1.0) == 2.0  # and leaves nothing behind
