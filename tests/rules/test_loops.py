import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.check.cases.loops import CASES
from fbp.check.suite import check_case

W = jnp.linspace(-1, 1, 9).reshape(3, 3)
H = jnp.linspace(0.2, 1, 3)
XS = jnp.linspace(-1, 1, 12).reshape(4, 3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def assert_same_gradients(fun, *xs):
    argnums = tuple(range(len(xs)))
    for transform in (lambda f: f, jax.jit):
        ours, theirs = transform(fbp.grad(fun, argnums))(*xs), transform(jax.grad(fun, argnums))(*xs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def residual_shapes(fun, *xs, **options):
    """Shapes of what the backward pass keeps, beyond the inputs themselves."""
    inputs = {id(x) for x in jax.tree.leaves(xs)}
    return sorted(r.shape for r in jax.tree.leaves(fbp.vjp(fun, *xs, **options)[1]) if id(r) not in inputs)


def rnn(w, h, xs, **options):
    def step(h, x):
        h = jnp.tanh(w * h * x)
        return h, h

    return lax.scan(step, h, xs, **options)


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"unroll": 2}, {"unroll": True}])
def test_scan(options):
    assert_same_gradients(lambda *xs: jnp.sum(rnn(*xs, **options)[0]), H, H, XS)
    assert_same_gradients(lambda *xs: jnp.sum(rnn(*xs, **options)[1] * XS), H, H, XS)


def test_scan_over_nothing():
    assert_same_gradients(lambda *xs: jnp.sum(rnn(*xs)[0]), H, H, XS[:0])
    assert_same_gradients(lambda h: jnp.sum(lax.scan(lambda h, _: (h * h, None), h, length=3)[0]), H)


def test_a_carry_that_begins_without_a_cotangent_gets_one():
    def fun(x):
        return lax.scan(lambda c, _: ((c[0] + 1, c[2], c[1] + x * x), c[1]), (0, 0.0, 1.0), length=4)

    assert_same_gradients(lambda x: fun(x)[0][1], 3.0)
    assert_same_gradients(lambda x: jnp.sum(fun(x)[1]), 3.0)


def test_nested_scans_and_second_order():
    def fun(w):
        return jnp.sum(lax.scan(lambda h, x: (rnn(w, h, XS * x)[0], None), H, XS)[0])

    assert_same_gradients(fun, H)
    assert_same_gradients(lambda w: jnp.sum(fbp.grad(fun)(w) * w), H)


def test_scan_keeps_what_is_invariant_once():
    # w and tanh w do not change from step to step; x_t and the outputs h_t are there already.
    def fun(w, h, xs):
        return lax.scan(lambda h, x: (jnp.tanh(jnp.tanh(w) * h * x),) * 2, h, xs)

    _, pullback = fbp.vjp(lambda w, h: fun(w, h, XS), H, H)
    stacked = [r for r in jax.tree.leaves(pullback) if r.ndim == 2]
    assert len(stacked) <= 5
    assert (3,) in residual_shapes(fun, H, H, XS, rules=fbp.RULES.recomputing([]))  # tanh w, else computed again from w


def test_what_goes_in_or_comes_out_is_kept_itself_and_not_a_copy():
    def is_kept(x, pullback):
        return any(leaf is x for leaf in jax.tree.leaves(pullback))

    (_, hs), pullback = fbp.vjp(lambda w, xs: rnn(w, H, xs), H, XS)
    assert is_kept(H, pullback) and is_kept(XS, pullback) and is_kept(hs, pullback)
    _, pullback = fbp.vjp(lambda x, w: lax.cond(x[0] > 0, jnp.dot, lambda x, w: x, x, w), H, W)
    assert is_kept(H, pullback) and is_kept(W, pullback)


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"unroll": 2}])
def test_a_carry_is_stacked_once_where_it_is_read_before_a_step_and_after_it(options):
    def fun(w, h):  # h_{t-1} for w_bar, and h_t for the slope of tanh
        return jnp.sum(lax.scan(lambda h, _: (jnp.tanh(w * h + 0.1), None), h, length=5, **options)[0])

    assert residual_shapes(fun, H, H).count((5, 3)) == 1
    assert_same_gradients(fun, H, H)
    assert_same_gradients(lambda w, h: jnp.sum(w * fbp.grad(fun)(w, h)), H, H)
    _, pullback = fbp.vjp(lambda h: jax.vmap(fun, (None, 0))(H, h), jnp.stack([H, 2 * H]))
    rows = jax.vmap(lambda g: pullback(g)[0])(jnp.eye(2))
    np.testing.assert_allclose(rows[1, 1], jax.grad(fun, 1)(H, 2 * H), rtol=1e-5)


def test_masks_that_do_not_change_are_not_stacked():
    def fun(h):
        mask = lambda: jnp.arange(3) < 2
        return lax.scan(lambda h, _: (jnp.where(mask(), h * h, h), None), h, length=5)[0]

    assert not [r for r in jax.tree.leaves(fbp.vjp(fun, H)[1]) if r.dtype == bool and r.ndim == 2]
    assert_same_gradients(lambda h: jnp.sum(fun(h)), H)


def test_no_residual_without_a_need():
    assert residual_shapes(lambda h: lax.scan(lambda h, x: (h + x, h), h, XS), H) == []


def test_eager_scans_compile_once(caplog):
    def step(carry, x):
        w, h = carry
        return (w, jnp.tanh(w * h * x)), None

    grad = fbp.grad(lambda w: jnp.sum(lax.scan(step, (w, H), XS)[0][1]))
    with jax.log_compiles(True):
        grad(H)
        assert "Compiling" in caplog.text
        caplog.clear()
        grad(2 * H)
        assert "scan" not in caplog.text


def test_cond_and_switch():
    branches = [lambda x, y: jnp.tanh(x) * y, lambda x, y: x * 1.0, lambda x, y: (x * x) * (y * y) * y]
    for i in range(3):
        assert_same_gradients(lambda x, y, i=i: lax.switch(i, branches, x, y), 0.3, 0.4)
    assert_same_gradients(lambda x, y: lax.cond(x > y, branches[0], branches[1], x, y), 0.3, 0.4)
    batched = jax.vmap(lambda x, y: lax.cond(x > y, branches[0], branches[1], x, y))
    assert_same_gradients(lambda x, y: jnp.sum(batched(x, y)), H - 0.5, H * 0)
    assert_same_gradients(lambda x: fbp.grad(lambda x: lax.cond(x > 0, branches[0], branches[2], x, 0.5))(x), 0.3)


def test_branches_share_room_for_their_residuals():
    branches = [lambda x: jnp.tanh(x), lambda x: x * jnp.tanh(x) * jnp.tanh(x * x)]
    kept = residual_shapes(jax.jit(lambda i, x: lax.switch(i, branches, x)), 0, H)
    assert len([shape for shape in kept if shape == (3,)]) <= 4


def test_a_branch_without_gradient_stops():
    stopped = jax.jit(lambda x: lax.cond(x > 0, lambda x: 1.0, lambda x: 2.0, x))
    assert fbp.grad(lambda x: stopped(x) * x)(3.0) == 1.0


def test_while():
    loop = lambda x: lax.while_loop(lambda x: x < 10, lambda x: x * x, x)
    with pytest.raises(ValueError, match=r"does not work for lax.while_loop.*'while' .*test_loops.py.*scan"):
        fbp.grad(loop)(2.0)
    with pytest.raises(ValueError):
        jax.grad(loop)(2.0)
    assert fbp.grad(lambda x: loop(lax.stop_gradient(x)) * x)(2.0) == 16.0
    assert (
        fbp.grad(lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 2), (0, 1.0))[1] * x)(2.0)
        == 8
    )
    assert_same_gradients(lambda x: lax.fori_loop(0, 3, lambda i, x: x * x, x), 1.1)
