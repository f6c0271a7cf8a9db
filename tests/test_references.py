"""Mutable references (`jax.new_ref`) in differentiated functions, as JAX differentiates them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp

X = jnp.array([1.0, 2.0, 3.0])


def read_and_write(x):
    ref = jax.new_ref(x)
    ref[1] = ref[0] * ref[2]
    ref[0] += jnp.sin(x[1])
    y = ref[...]
    ref[...] = y * y
    return jnp.sum(jax.freeze(ref) * y)


def made_of_a_constant(x):
    ref = jax.new_ref(jnp.zeros(3))
    ref[1:] = x[:2] * x[2]
    return jnp.sum(ref[...] ** 2)


def in_a_loop(x):
    ref = jax.new_ref(jnp.zeros(3))

    def body(i, _):
        ref[i] += jnp.sin(x[i]) * (ref[i - 1] + 1.0)
        return ()

    lax.fori_loop(0, 3, body, ())
    return jnp.sum(ref[...] ** 2)


def in_a_scan(x):
    ref = jax.new_ref(jnp.zeros(3))

    def step(h, v):
        ref[...] = ref[...] * h + v
        return jnp.tanh(h * v), ref[0]

    h, ys = lax.scan(step, jnp.ones(()), x)
    return h + jnp.sum(ys) + jnp.sum(jnp.sin(ref[...]))


def in_a_jitted_function(x):
    ref = jax.new_ref(x)

    @jax.jit
    def inner(ref, y):
        ref[0] = ref[1] * y
        return ref[2] * y

    return inner(ref, x[0]) + jnp.sum(jnp.sin(ref[...]))


def in_a_checkpoint(x):
    return jax.checkpoint(read_and_write)(x)


def in_a_vmap(x):
    return jnp.sum(jax.vmap(read_and_write)(jnp.stack([x, x * x])))


def of_integers(x):
    ref = jax.new_ref(jnp.int32(0))
    ref[...] = ref[...] + 1
    return x[ref[...]] ** 2


PROGRAMS = [
    read_and_write,
    made_of_a_constant,
    in_a_loop,
    in_a_scan,
    in_a_jitted_function,
    in_a_checkpoint,
    in_a_vmap,
    of_integers,
]


@pytest.mark.parametrize("fun", PROGRAMS, ids=lambda fun: fun.__name__)
def test_agrees_with_jax(fun):
    expected = jax.grad(fun)(X)
    np.testing.assert_allclose(fbp.grad(fun)(X), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(fbp.grad(fun))(X), expected, rtol=1e-5)
    batched = jax.vmap(fbp.grad(fun))(jnp.stack([X, X + 1]))
    np.testing.assert_allclose(batched, jax.vmap(jax.grad(fun))(jnp.stack([X, X + 1])), rtol=1e-5)


@pytest.mark.parametrize("fun", [*PROGRAMS], ids=lambda fun: fun.__name__)
def test_second_derivatives(fun):
    """Which JAX 0.10 has not for most of them: against finite differences of the first."""
    step = 1e-2
    ours = fbp.hessian(fun)(X)
    difference = lambda e: (fbp.grad(fun)(X + step * e) - fbp.grad(fun)(X - step * e)) / (2 * step)
    np.testing.assert_allclose(ours, jnp.stack([difference(e) for e in jnp.eye(3)]), rtol=2e-2, atol=2e-2)


def test_a_branch_that_writes():
    def fun(x):
        ref = jax.new_ref(x)

        def write():
            ref[0] = ref[1] * x[2]

        lax.cond(x[0] > 0, write, lambda: None)
        return jnp.sum(jnp.sin(ref[...]))

    def pure(x):
        return jnp.sum(jnp.sin(x.at[0].set(x[1] * x[2])))

    np.testing.assert_allclose(fbp.grad(fun)(X), jax.grad(pure)(X), rtol=1e-6)


def test_a_reference_from_outside_is_read_and_written_without_cotangents():
    log = jax.new_ref(jnp.zeros(3))

    def fun(x):
        def step(h, v):
            log[...] += lax.stop_gradient(h)
            return jnp.tanh(h * v), None

        return jnp.sum(lax.scan(step, x[0], x)[0] * log[...])

    gradient = fbp.grad(fun)(X)
    np.testing.assert_allclose(log[...], jnp.full(3, 1 + jnp.tanh(1.0) + jnp.tanh(2 * jnp.tanh(1.0))), rtol=1e-6)
    log[...] = jnp.zeros(3)
    np.testing.assert_allclose(gradient, jax.grad(fun)(X), rtol=1e-6)


def test_a_differentiated_value_is_not_written_to_a_reference_from_outside():
    log = jax.new_ref(jnp.zeros(3))

    def fun(x):
        log[...] = 2 * x
        return jnp.sum(x)

    with pytest.raises(ValueError, match=r"'swap'.*made outside.*Make the reference inside"):
        fbp.grad(fun)(X)
    assert not log[...].any()


@jax.custom_vjp
def noting_its_cotangent(x, ref):
    return x


def _note(ref, g):
    ref[...] += g
    return 2 * g, None


noting_its_cotangent.defvjp(lambda x, ref: (x, ref), _note)


def noting(x, ref):
    return jnp.sin(noting_its_cotangent(jnp.sin(x), ref))


CALLS = {
    "plain": noting,
    "jit": jax.jit(noting),
    "checkpoint": jax.checkpoint(noting),
    "checkpoint with a policy": jax.checkpoint(noting, policy=lambda *_, **__: True),
    "scan": lambda x, ref: lax.scan(lambda h, _: (noting(h, ref), None), x, None, length=3)[0],
    "checkpoint in scan": lambda x, ref: lax.scan(
        lambda h, _: (jax.checkpoint(noting)(h, ref), None), x, None, length=3
    )[0],
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_bwd_of_a_custom_vjp_may_write_to_a_reference_from_outside(call):
    """As JAX's guide to references plumbs statistics of the backward pass out of it."""

    def cotangents(grad):
        notes = []
        for fun in (call, jax.jit(call)):
            ref = jax.new_ref(jnp.zeros(()))
            notes.append((grad(fun)(2.0, ref), ref[...]))
            closed_over = jax.new_ref(jnp.zeros(()))
            notes.append((grad(lambda x, fun=fun, ref=closed_over: fun(x, ref))(2.0), closed_over[...]))
        return notes

    np.testing.assert_allclose(cotangents(fbp.grad), cotangents(jax.grad), rtol=1e-6)


def test_a_differentiated_value_may_be_written_to_a_reference_of_the_kind_that_has_no_gradient():
    def fun(x, ref):
        ref[...] += 2 * x
        return jnp.sum(x * x)

    refs = [jax.new_ref(jnp.zeros(3), kind="no_grad_no_remat") for _ in range(2)]
    np.testing.assert_allclose(fbp.grad(fun)(X, refs[0]), jax.grad(fun)(X, refs[1]))
    np.testing.assert_allclose(refs[0][...], refs[1][...])


def test_a_reference_that_was_made_empty_and_is_freed():
    @jax.jit
    def fun(x):
        ref = jax.empty_ref(jax.ShapeDtypeStruct((3,), "float32"))
        ref[...] = jnp.sin(x)
        y = ref[...]
        jax.free_ref(ref)
        return jnp.sum(y * y)

    np.testing.assert_allclose(fbp.grad(fun)(X), jax.grad(fun)(X), rtol=1e-6)


def test_what_is_given_in_the_place_of_an_integer_is_no_matter_to_with_refs():
    total = jax.new_ref(jnp.zeros(3))
    _, pullback = fbp.vjp(lambda x, i: x[i] ** 2, X, 1)
    pullback.with_refs(total, object())(1.0)
    np.testing.assert_allclose(total[...], [0, 4, 0])


def test_a_reference_has_no_gradient():
    with pytest.raises(TypeError, match="argument 0 is a mutable reference"):
        fbp.grad(lambda ref: jnp.sum(ref[...]))(jax.new_ref(X))


def test_constants_are_arrays_as_without_fbp():
    def fun(x):
        assert all(isinstance(c, jax.Array) for c in (jnp.asarray(0), jnp.array(1.5), jnp.asarray(np.ones(2))))
        return x

    fbp.grad(fun)(1.0)
