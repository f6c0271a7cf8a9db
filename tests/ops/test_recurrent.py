import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp import ops
from fbp.rules import choices

SIGMOID = jax.nn.sigmoid


def elman_step(w, u, b, _, carry, x):
    (h,) = carry
    h = jnp.tanh(x @ w + h @ u + b)
    return (h,), h


def lstm_step(w, u, b, _, carry, x):
    c, h = carry
    i, f, g, o = jnp.split(x @ w + h @ u + b, 4, -1)
    c = SIGMOID(f) * c + SIGMOID(i) * jnp.tanh(g)
    h = SIGMOID(o) * jnp.tanh(c)
    return (c, h), h


def gru_step(w, u, b, recurrent_b, carry, x):
    (h,) = carry
    (r, z, n), (h_r, h_z, h_n) = jnp.split(x @ w + b, 3, -1), jnp.split(h @ u, 3, -1)
    r, z = SIGMOID(r + h_r), SIGMOID(z + h_z)
    h = (1 - z) * jnp.tanh(n + r * (h_n + recurrent_b)) + z * h
    return (h,), h


STEPS = {"elman": (elman_step, 1, 1), "lstm": (lstm_step, 4, 2), "gru": (gru_step, 3, 1)}
kinds = pytest.mark.parametrize("kind", STEPS)


@pytest.fixture(autouse=True)
def as_one(monkeypatch):
    """As one operation, whatever the choice is."""
    monkeypatch.setattr(choices, "recurrent", lambda cell: True)


def arguments(kind, time=5, dtype=jnp.float32):
    _, gates, states = STEPS[kind]
    shapes = (time, 2, 3), (3, 4 * gates), (4, 4 * gates), (4 * gates,), (4,), *[(2, 4)] * states
    rngs = jax.random.split(jax.random.key(0), len(shapes))
    return [0.7 * jax.random.normal(rng, shape, dtype) for rng, shape in zip(rngs, shapes, strict=True)]


def ours(kind, **options):
    def run(x, w, u, b, recurrent_b, *carry):
        more = (recurrent_b,) if kind == "gru" else ()
        return getattr(ops, kind)(x, w, u, b, *more, carry if len(carry) > 1 else carry[0], **options)

    return run


def textbook(kind, reverse=False):
    def run(x, w, u, b, recurrent_b, *carry):
        step = lambda carry, x: STEPS[kind][0](w, u, b, recurrent_b, carry, x)
        carry, hs = lax.scan(step, carry, x, reverse=reverse)
        return carry if len(carry) > 1 else carry[0], hs

    return run


def loss(f):
    """Of all that comes out."""

    def scalar(*args):
        ys = jax.tree.leaves(f(*args))
        return sum(jnp.sum(jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y.astype(jnp.float32)) for y in ys)

    return scalar


def slopes(grad, f, args):
    """But for the bias of a GRU's candidate, which other cells have not."""
    places = tuple(i for i in range(len(args)) if i != 4)
    return jax.jit(grad(loss(f), places))(*args)


def assert_close(a, b, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max(initial=1))


@pytest.mark.parametrize("reverse", [False, True])
@kinds
def test_value_and_gradient_are_those_of_the_textbook(kind, reverse):
    args = arguments(kind)
    f, reference = ours(kind, reverse=reverse, unroll=2), textbook(kind, reverse)
    assert_close(f(*args), reference(*args))
    assert_close(slopes(fbp.grad, f, args), slopes(jax.grad, reference, args))


@kinds
def test_as_a_scan_it_is_the_same(kind, monkeypatch):
    args = arguments(kind)
    expected = slopes(fbp.grad, ours(kind), args)
    monkeypatch.setattr(choices, "recurrent", lambda cell: False)
    assert_close(slopes(fbp.grad, ours(kind), args), expected)


@pytest.mark.parametrize("chunk_size", [2, 7])
@pytest.mark.parametrize("reverse", [False, True])
@kinds
def test_a_few_steps_at_a_time_it_is_the_same(kind, reverse, chunk_size, monkeypatch):
    args = arguments(kind)
    expected = ours(kind, reverse=reverse)(*args), slopes(fbp.grad, ours(kind, reverse=reverse), args)
    monkeypatch.setattr(choices, "recurrent_steps", lambda steps, size: chunk_size)
    f = ours(kind, reverse=reverse)
    assert_close((f(*args), slopes(fbp.grad, f, args)), expected)


def test_a_chunk_fills_the_cache_and_leaves_no_step_over_if_that_can_be(monkeypatch):
    monkeypatch.setattr(choices, "CACHE", 1 << 20)
    assert choices.recurrent_steps(64, 1 << 16) == 64
    assert choices.recurrent_steps(256, 1 << 16) == 16
    assert choices.recurrent_steps(100, 1 << 16) == 10
    assert choices.recurrent_steps(101, 1 << 16) == 16
    assert choices.recurrent_steps(100, 1 << 30) == 1
    assert choices.recurrent_steps(0, 1 << 30) == 1


@pytest.mark.parametrize("time", [0, 1])
@kinds
def test_no_step_and_one(kind, time):
    args = arguments(kind, time)
    assert_close(slopes(fbp.grad, ours(kind), args), slopes(jax.grad, textbook(kind), args))


@kinds
def test_no_example(kind):
    x, w, u, b, *_ = arguments(kind)
    f = getattr(ops, kind)
    _, w_bar = fbp.grad(lambda x, w: jnp.sum(f(x, w, u, b)[1]), (0, 1))(x[:, :0], w)
    assert not np.any(w_bar)


@kinds
def test_only_some_inputs_and_outputs(kind):
    args = arguments(kind)
    for i in (0, 1, 2, 3, 5):
        of_last = lambda f, i=i: lambda z: jnp.sum(jax.tree.leaves(f(*args[:i], z, *args[i + 1 :]))[0])
        assert_close(fbp.grad(of_last(ours(kind)))(args[i]), jax.grad(of_last(textbook(kind)))(args[i]))


@kinds
def test_a_bias_and_a_carry_may_be_left_out_and_the_batch_too(kind):
    x, w, u, b, recurrent_b, *carry = arguments(kind)
    zero = [jnp.zeros_like(z) for z in (b, recurrent_b, *carry)]
    hs = getattr(ops, kind)(x, w, u)[1]
    assert_close(hs, textbook(kind)(x, w, u, *zero)[1])
    assert_close(getattr(ops, kind)(x[:, 0], w, u)[1], hs[:, 0])
    assert_close(getattr(ops, kind)(x[:, None], w, u)[1], hs[:, None])


@kinds
def test_transformed_it_is_still_the_operation(kind):
    args = arguments(kind, 3)
    del args[4]
    full = lambda f: lambda *some: loss(f)(*some[:4], jnp.zeros(4), *some[4:])
    batch = [jnp.stack([x, x / 2]) for x in args]

    def both(grad, f):
        slope = grad(full(f), tuple(range(len(args))))
        return grad(lambda *args: sum(jnp.sum(g**2) for g in jax.vmap(slope)(*args)))

    assert_close(jax.jit(both(fbp.grad, ours(kind)))(*batch), jax.jit(both(jax.grad, textbook(kind)))(*batch), 1e-4)


@kinds
def test_bfloat16(kind):
    args = arguments(kind, dtype=jnp.bfloat16)
    gradient = slopes(fbp.grad, ours(kind), args)
    assert {g.dtype for g in gradient} == {jnp.dtype(jnp.bfloat16)}
    wide = [x.astype(jnp.float32) for x in args]
    assert_close(gradient, slopes(jax.grad, textbook(kind), wide), 5e-2)


def test_an_example_that_is_not_a_number_is_alone():
    x, w, u, b, *_ = arguments("lstm")
    slope = fbp.grad(lambda x: jnp.sum(ops.lstm(x, w, u, b)[1]))(x.at[2, 1, 0].set(jnp.nan))
    assert np.isnan(slope[:, 1]).all() and np.isfinite(slope[:, 0]).all()


def test_what_does_not_go_together_is_said():
    x, w, u, b, _, c, h = arguments("lstm")
    says = r"lstm of x \(5, 2, 3\) with 4 features: kernel \(16, 3\), not \(3, 16\); carry\[0\] \(4,\), not \(2, 4\)."
    with pytest.raises(ValueError, match=says):
        ops.lstm(x, w.T, u, b, (c, h[0]))
    with pytest.raises(TypeError, match=r"computes in the dtype of x, bfloat16, but got .*'bias': 'float32'"):
        ops.lstm(x.astype(jnp.bfloat16), w, u, b)
