import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.rules import carried

STEPS, WIDTH = 300, 64
W = jax.random.normal(jax.random.key(0), (WIDTH, WIDTH)) / 8
XS = jax.random.normal(jax.random.key(1), (STEPS, WIDTH))


def recurrent(w, xs):
    """A net that writes its states into an array, and reads them from there."""

    def body(t, states):
        return states.at[t].set(jnp.tanh(states[t - 1] @ w) + xs[t])

    return jnp.sum(lax.fori_loop(1, STEPS, body, jnp.zeros_like(xs)) ** 2)


def two_arrays(w, xs):
    """Sums at places that repeat, and a window that moves."""

    def body(carry, x):
        table, window, t = carry
        row = table[t % 7]
        table = table.at[jnp.array([3, 5]) + t % 7].add(jnp.stack([row, jnp.sin(x)]))
        old = lax.dynamic_slice(window, (t, 0), (2, WIDTH))
        window = lax.dynamic_update_slice(window, old * 0.5 + row, (t, 0))
        return (table, window, t + 1), old[0] @ w

    carry, ys = lax.scan(body, (xs, xs[::-1], 0), xs[:50])
    return jnp.sum(ys) + sum(jnp.sum(jnp.sin(x)) for x in carry[:2])


def written_before_read(w, xs):
    """In this order the array has to be copied."""

    def body(old, x):
        new = old.at[0].set(x @ w)
        return new, jnp.sum(old[:2])

    last, ys = lax.scan(body, xs, xs)
    return jnp.sum(last**2) + jnp.sum(ys**2)


@pytest.mark.parametrize("fun", [recurrent, two_arrays, written_before_read])
def test_has_the_gradient_of_jax(fun):
    for transform in (lambda f: f, jax.jit):
        ours, theirs = transform(fbp.grad(fun, (0, 1)))(W, XS), transform(jax.grad(fun, (0, 1)))(W, XS)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def test_is_transformed_as_any_scan():
    def fun(w):
        return recurrent(w, XS[:5])

    small = W * 0.1
    ours = jax.jvp(fbp.grad(fun), (small,), (W,))[1]
    np.testing.assert_allclose(ours, jax.jvp(jax.grad(fun), (small,), (W,))[1], rtol=1e-4, atol=1e-5)
    ours = jax.vmap(fbp.grad(fun))(jnp.stack([small, W]))
    np.testing.assert_allclose(ours, jax.vmap(jax.grad(fun))(jnp.stack([small, W])), rtol=1e-4, atol=1e-5)
    twice = lambda grad: grad(lambda w: jnp.sum(grad(fun)(w) ** 2))(small)
    np.testing.assert_allclose(twice(fbp.grad), twice(jax.grad), rtol=1e-3, atol=1e-4)


def copies(gradient):
    program = jax.jit(gradient).lower(W, XS).compile().as_text()
    return len(re.findall(rf"f32\[{STEPS},{WIDTH}\]\S* copy\(", program))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the choice is for CPUs")
def test_no_step_copies_the_array(monkeypatch):
    assert copies(fbp.grad(recurrent)) == 0
    monkeypatch.setattr(carried.choices, "is_written_in_place", lambda aval: False)
    jax.clear_caches()
    assert copies(fbp.grad(lambda w, xs: recurrent(w, xs) + 0)) > 0
    jax.clear_caches()
