import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import primitives as p

import fbp
from fbp.check.cases.calls import CASES
from fbp.check.suite import check_case

X = jnp.linspace(-1, 1, 3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def assert_same_gradients(fun, *xs, argnums=None):
    argnums = tuple(range(len(xs))) if argnums is None else argnums
    for transform in (lambda f: f, jax.jit):
        ours, theirs = transform(fbp.grad(fun, argnums))(*xs), transform(jax.grad(fun, argnums))(*xs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_jit_returns_no_array_twice():
    inner = jax.jit(lambda x, y: (x * y, jnp.tanh(y) * x))
    for rules, n in (fbp.RULES.recomputing([]), 3), (fbp.RULES, 2):
        jaxpr = jax.make_jaxpr(lambda x, y, rules=rules: fbp.vjp(inner, x, y, rules=rules))(X, X)
        (forward,) = jaxpr.eqns
        assert len(forward.outvars) == n  # two outputs, and tanh y if it is kept; the other residuals are inputs


def test_jit_names_and_inlining_are_kept():
    @jax.jit
    def my_layer(x):
        return x * x

    inlined = jax.jit(lambda x: x * x, inline=True)

    model = lambda x: inlined(my_layer(x))
    eqns = jax.make_jaxpr(lambda x: fbp.vjp(model, x)[0])(X).eqns
    assert [eqn.params.get("name", eqn.primitive.name) for eqn in eqns] == ["my_layer", "mul"]

    def backward(x):
        return fbp.grad(lambda x: jnp.sum(inlined(x)))(x)

    assert "jit" not in {eqn.primitive.name for eqn in jax.make_jaxpr(backward)(X).eqns}


def test_a_rule_for_jit_is_asked_for_what_is_inlined_too():
    seen = []
    jit = fbp.RULES[p.jit_p]

    def forward(site, *xs, name, **params):
        seen.append(name)
        return jit.fwd(site, *xs, name=name, **params)

    square = jax.jit(lambda x: x * x, inline=True)
    rules = fbp.RULES | {p.jit_p: fbp.Rule(forward, jit.bwd)}
    jax.jit(fbp.grad(lambda x: jnp.sum(square(x)), rules=rules))(X)
    assert "<lambda>" in seen


@jax.custom_jvp
def times(x, y, n):
    return x * y * n


@times.defjvp
def _(primals, tangents):
    x, y, n = primals
    x_dot, y_dot, _ = tangents
    return x * y * n, 3 * x_dot * y * n + (5 if y is X else 7) * x * y_dot


def test_custom_jvp():
    assert_same_gradients(lambda x, y: jnp.sum(times(x, y, 2)), X, X + 1)
    assert_same_gradients(lambda x: jnp.sum(times(x, x * 1.0, 2)), X)
    assert_same_gradients(lambda x: jnp.sum(jax.vmap(times, (0, None, None))(x, 2.0, 3)), X)
    assert_same_gradients(lambda x: jnp.sum(fbp.grad(lambda x: jnp.sum(times(x, x * x, 2)))(x) * x), X)


def test_custom_jvp_sees_concrete_values():
    @jax.custom_jvp
    def fun(x):
        return x * x

    fun.defjvp(lambda primals, tangents: (primals[0] ** 2, tangents[0] * (2 if primals[0] > 1 else 3)))
    assert fbp.grad(fun)(2.0) == 2.0 and fbp.grad(fun)(0.5) == 3.0


def test_custom_jvp_with_symbolic_zeros():
    seen = []

    @jax.custom_jvp
    def fun(x, y):
        return x * y, x

    @functools.partial(fun.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        (x, y), (x_dot, y_dot) = primals, tangents
        seen.append((type(x_dot) is SymbolicZero, type(y_dot) is SymbolicZero))
        return (x * y, x), (3 * x_dot * y, SymbolicZero(jax.typeof(x).to_tangent_aval()))

    assert fbp.grad(lambda x: fun(x, 2.0)[0])(5.0) == 6.0
    assert fbp.grad(lambda x: fun(x, 2.0)[1] * x)(5.0) == 5.0
    assert set(seen) == {(False, True)}


def make_custom_vjp(seen=None, **options):
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def fun(scale, tree, n):
        return scale * tree["x"] * n, tree["x"]

    def fwd(scale, tree, n):
        x = tree["x"].value if options else tree["x"]
        if options:
            seen.append((tree["x"].perturbed, n.perturbed))
            n = n.value
        return (scale * x * n, x), (x, n)

    def bwd(scale, residuals, bars):
        x, n = residuals
        if options:
            seen.append(tuple(type(bar) is SymbolicZero for bar in bars))
            return {"x": bars[0] * 7 * scale * n}, None
        return {"x": bars[0] * 7 * scale * n + bars[1] * x}, None

    fun.defvjp(fwd, bwd, **options)
    return fun


def test_custom_vjp():
    fun = make_custom_vjp()
    assert_same_gradients(lambda x: jnp.sum(fun(2.0, {"x": x}, 3)[0]), X)
    assert_same_gradients(lambda x: jnp.sum(fun(2.0, {"x": x}, 3)[1]), X)
    assert_same_gradients(lambda x: jnp.sum(jax.jit(lambda x: fun(2.0, {"x": x}, 3)[0])(x * x)), X)
    assert_same_gradients(lambda x: jnp.sum(jax.vmap(lambda x: fun(2.0, {"x": x}, 3)[0])(x)), X)
    assert_same_gradients(lambda x: jnp.sum(jax.lax.scan(lambda h, x: fun(2.0, {"x": h * x}, 3), 1.0, x)[0]), X)


def test_custom_vjp_with_symbolic_zeros():
    seen = []
    fun = make_custom_vjp(seen, symbolic_zeros=True)
    assert fbp.grad(lambda x: fun(2.0, {"x": x}, 3)[0])(1.0) == 42.0
    assert seen == [(True, False), (False, True)]


def test_errors_of_a_custom_rule_are_jax_errors():
    fun = jax.custom_vjp(lambda x: x)
    fun.defvjp(lambda x: (x, None), lambda _, g: (g, g))
    with pytest.raises(TypeError, match="bwd rule"):
        fbp.grad(fun)(1.0)


@pytest.mark.parametrize("bar", [2, 2.0, np.float64(2.0), jnp.bfloat16(2.0), np.int32(2)])
def test_a_custom_rule_may_return_a_cotangent_of_another_dtype(bar):
    fun = jax.custom_vjp(lambda x: x)
    fun.defvjp(lambda x: (x, None), lambda _, g: (bar,))
    gradient = fbp.grad(lambda x: fun(x) * x)(jnp.float16(3.0))
    assert gradient.dtype == jnp.float16 and gradient == 5.0


def test_as_custom_vjp_hands_the_rules_to_jax():
    double = fbp.as_custom_vjp(
        lambda x, n: jnp.tanh(x) * n, rules=fbp.RULES | {jax.lax.tanh_p: fbp.table(lambda g: 2 * g)}
    )
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(double(x, 3)))(X), 6.0)
    np.testing.assert_allclose(double(X, 3), jnp.tanh(X) * 3)


def test_a_linear_solve_without_a_transposed_solver_is_an_error():
    solve = lambda matvec, b: b / 2
    fun = lambda b: jnp.sum(jax.lax.custom_linear_solve(lambda x: 2 * x, b, solve))
    with pytest.raises(TypeError, match="transpose_solve required"):
        fbp.grad(fun)(X)


@pytest.mark.parametrize("callback", [jax.pure_callback, jax.experimental.io_callback])
def test_what_is_computed_outside_of_jax_has_no_cotangents(callback):
    def fun(x):
        return callback(np.sin, jax.ShapeDtypeStruct((), jnp.float32), x)

    with pytest.raises(ValueError, match=r"callbacks do not support JVP.*'(pure|io)_callback'.*outside of JAX"):
        fbp.grad(fun)(1.0)
    assert float(fbp.grad(lambda x: x * fun(jax.lax.stop_gradient(x)))(1.0)) == pytest.approx(np.sin(1.0))


def test_the_residuals_of_a_linear_call_have_no_cotangent():
    scaled = lambda r, x: jax.custom_derivatives.linear_call(lambda r, x: r * x, lambda r, y_bar: r * y_bar, r, x)
    with pytest.raises(NotImplementedError, match="residuals of 'linear_call'"):
        fbp.grad(scaled)(2.0, 3.0)


def test_a_linear_function_whose_tangent_is_itself():
    @jax.custom_jvp
    def double(x):
        return 2.0 * x

    double.defjvp(lambda xs, dots: (double(*xs), double(*dots)))
    assert float(fbp.grad(double)(3.0)) == 2.0
    assert float(jax.jit(fbp.grad(lambda x: double(double(x) * x)))(3.0)) == 24.0
    scanned = lambda x: jax.lax.scan(lambda h, _: (double(h), None), x, None, length=3)[0]
    assert float(fbp.grad(scanned)(1.0)) == 8.0
    assert float(fbp.grad(fbp.grad(lambda x: double(x) ** 2))(1.0)) == 8.0


def test_closure_convert_hoists_what_is_differentiated():
    def solve(c, x):
        fun, constants = jax.closure_convert(lambda x: jnp.sum(jnp.full(3, 3.0) * (x - c) ** 2), x)
        assert len(constants) == 1
        return jnp.cos(fun(x, *constants))

    assert_same_gradients(solve, 2 * X, X)


def test_the_order_of_a_program_is_no_matter_to_its_gradient():
    overlap = pytest.importorskip("jax.experimental.overlap", reason="jax 0.10 has none")
    fun = overlap.program_order(lambda x: jnp.sin(x) * x, enforce=False)
    assert fbp.grad(fun)(0.5) == pytest.approx(float(jax.grad(lambda x: jnp.sin(x) * x)(0.5)))
