"""Programs that nobody wrote: operations, calls, loops and branches, put together at random. Rules are proved one by one
(`fbp.check`); what they do to one another is seen here."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.check.compare import relative_error

SHAPE = (3, 4)


@jax.custom_jvp
def with_jvp(x):
    return x * jnp.sin(x)


@with_jvp.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return with_jvp(x), (jnp.sin(x) + x * jnp.cos(x)) * t


@jax.custom_vjp
def with_vjp(x, y):
    return y * jnp.tanh(x)


with_vjp.defvjp(
    lambda x, y: (with_vjp(x, y), (x, y)), lambda r, g: (1.5 * g * r[1] * jnp.cos(r[0]), g * jnp.tanh(r[0]))
)

ROWS, PLACES = np.array([2, 0, 2]), np.array([0, 2])

OF_ONE = [
    jnp.sin, jnp.tanh, jax.scipy.special.erf, jax.nn.relu, jax.nn.gelu, jax.nn.softmax, with_jvp, jnp.flip,
    lambda x: jnp.exp(-x * x),
    lambda x: x**3 / 5,
    lambda x: jnp.power(1 + x * x, 0.3),
    lambda x: jnp.log1p(x * x),
    lambda x: jnp.clip(x, -0.7, 0.7),
    lambda x: x * jnp.floor(x),
    lambda x: x + jnp.sign(x),
    lambda x: jnp.abs(lax.complex(x, 1 + x * x)),
    lambda x: jnp.real((1 + 2j) * jnp.exp(1j * x)),
    lambda x: x.astype(jnp.float32).astype(x.dtype),
    # Sums, largest and ordered elements
    lambda x: x - jax.nn.logsumexp(x, 1, keepdims=True),
    lambda x: x * jnp.sum(x, 0, keepdims=True) / 10,
    lambda x: x * jnp.max(x, 1, keepdims=True),
    lambda x: x * jnp.prod(1 + jnp.tanh(x), 1, keepdims=True) / 8,
    lambda x: (x - jnp.mean(x, -1, keepdims=True)) * lax.rsqrt(jnp.var(x, -1, keepdims=True) + 0.1),
    lambda x: jnp.cumsum(x, 1) / 4,
    lambda x: lax.cummax(x, 1),
    lambda x: lax.cumlogsumexp(x, 0),
    lambda x: lax.associative_scan(lambda a, b: a * b / 2 + a, x, axis=1),
    lambda x: jnp.sort(x, 1),
    lambda x: lax.top_k(x, 2)[0].repeat(2, 1),
    lambda x: jax.nn.one_hot(jnp.argmax(x, 1), 4) * x,
    # Shapes and places
    lambda x: x.T.reshape(SHAPE),
    lambda x: jnp.roll(x, 1, 1),
    lambda x: jnp.pad(x, ((1, 0), (0, 1)))[:3, 1:],
    lambda x: jnp.broadcast_to(x[:, :1], SHAPE),
    lambda x: x[ROWS],
    lambda x: jax.ops.segment_sum(x, ROWS, 3),
    # Windows, products, transforms
    lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 1), "SAME"),
    lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 3), (1, 1), "SAME") / 6,
    lambda x: jnp.linalg.cholesky(x @ x.T + 3 * jnp.eye(3)) @ x / 4,
    lambda x: jnp.fft.irfft((1 + 0.3j) * jnp.fft.rfft(x, axis=1), 4, axis=1),
]  # fmt: skip
OF_TWO = [
    jnp.add, jnp.multiply, jnp.maximum, jnp.minimum,
    lambda x, y: x / (1 + y * y),
    lambda x, y: jnp.arctan2(x, 1 + y * y),
    lambda x, y: x * lax.stop_gradient(y),
    lambda x, y: jnp.concatenate([x[:1], y[1:]]),
    lambda x, y: jnp.stack([x, y]).mean(0),
    lambda x, y: jnp.take_along_axis(x, jnp.argsort(y, 1), 1),
    lambda x, y: x.at[1].set(y[0]),
    lambda x, y: x.at[:, 2].add(y[:, 1]),
    lambda x, y: x.at[PLACES].mul(y[:2], unique_indices=True),
    lambda x, y: x * lax.dynamic_slice(y, (0, jnp.argmin(y[0])), (1, 1)),
    lambda x, y: lax.dynamic_update_slice(x, y[:2, :2], (jnp.argmax(x[:, 0]), 1)),
    lambda x, y: jnp.einsum("ij,kj->ik", x, y) @ x / 10,
    lambda x, y: lax.conv_general_dilated(x[None, None], y[None, None, :2, :3], (1, 1), "SAME")[0, 0],
    lambda x, y: jnp.linalg.solve(x.T @ x + 2 * jnp.eye(4), y.T).T,
]  # fmt: skip
OF_THREE = [
    lambda x, y, z: x @ y.T @ z / 20,
    lambda x, y, z: jnp.where(x > y, x * z, z),
]


def scan(f, a, b, c):
    def body(carry, x):
        y = jnp.tanh(f(*carry, x))
        return (y, carry[0] / 2), x * y

    (y, z), ys = lax.scan(body, (a, b), jnp.stack([a, b, c, c]), reverse=True, unroll=2)
    return y + z + jnp.sum(ys, 0) / 5


def writes(f, a, b, c):
    body = lambda i, history: history.at[i].set(jnp.tanh(f(history[i - 1], b, c)))
    return lax.fori_loop(1, 4, body, jnp.stack([a] * 4))[3]


def reference(f, a, b, c):
    ref = jax.new_ref(f(a, b, c))
    ref[1] = b[0]
    ref[...] = c * ref[...]
    return jax.freeze(ref)


def slope(f, a, b, c):
    return jax.grad(lambda x: jnp.sum(jnp.sin(f(x, b, c))))(a)


AROUND = [
    lambda f, *xs: jax.jit(f)(*xs),
    lambda f, *xs: jax.checkpoint(f)(*xs),
    lambda f, *xs: jax.checkpoint(f, policy=jax.checkpoint_policies.dots_saveable)(*xs),
    lambda f, a, b, c: lax.cond(jnp.sum(a) > 0, f, lambda a, b, c: f(c, b, a), a, b, c),
    lambda f, a, b, c: lax.switch(jnp.argmax(a[0]), [f, lambda a, b, c: b, lambda a, b, c: f(b, a, c)], a, b, c),
    lambda f, a, b, c: lax.fori_loop(0, 3, lambda i, x: jnp.tanh(f(x, b, i * c)), a),
    lambda f, a, b, c: jnp.sum(lax.map(lambda x: f(x, b, c), jnp.stack([a, b])), 0),
    lambda f, a, b, c: jnp.mean(jax.vmap(f, (0, 0, None))(jnp.stack([a, b]), jnp.stack([b, c]), c), 0),
    scan,
    writes,
    slope,
]


def compose(rng: np.random.Generator, length: int, depth: int, once: bool) -> Callable:
    """A function of three arrays: operations, each of which reads some of the values before it, and gives one more. `once`: it
    is differentiated only once, as a mutable reference, and in forward mode a custom_vjp, cannot be twice."""
    around = AROUND + [reference] * once
    kinds = [
        (1, OF_ONE, 0.35),
        (2, OF_TWO + [with_vjp] * once, 0.3),
        (3, OF_THREE, 0.1),
        (3, around, 0.25 * (depth > 0)),
    ]
    chances = np.array([chance for *_, chance in kinds])
    program = []
    for i in range(length):
        arity, operations, _ = kinds[rng.choice(len(kinds), p=chances / chances.sum())]
        operation = operations[rng.integers(len(operations))]
        if operations is around:
            inner = compose(rng, int(rng.integers(1, 5)), depth - 1, once and operation is not slope)
            operation = functools.partial(operation, inner)
        program.append((operation, rng.integers(3 + i, size=arity)))

    def composed(*xs):
        values = [*xs]
        for operation, places in program:
            values.append(operation(*(values[i] for i in places)))
        return values[-1] + values[-2] * jnp.cos(values[-3])  # so that most of them are read

    return composed


def gradient(grad, fun):
    return grad(lambda *xs: jnp.sum(jnp.sin(fun(*xs))), (0, 1, 2))


def along(grad, fun, ts):
    """The slope along ts, as a function to differentiate again."""
    return lambda *xs: sum(map(jnp.vdot, gradient(grad, fun)(*xs), ts))


# What is asked of a program: given jax.grad or fbp.grad, the program, its inputs and a direction.
FIRST = {
    "staged": lambda grad, f, xs, ts: jax.jit(gradient(grad, f))(*xs),
    "as it runs": lambda grad, f, xs, ts: gradient(grad, f)(*xs),
    "mapped": lambda grad, f, xs, ts: jax.jit(jax.vmap(gradient(grad, f)))(*map(lambda *x: jnp.stack(x), xs, ts)),
}
SECOND = {
    "tangent": lambda grad, f, xs, ts: jax.jit(lambda *xs: jax.jvp(gradient(grad, f), xs, ts)[1])(*xs),
    "twice": lambda grad, f, xs, ts: jax.jit(grad(along(grad, f, ts), (0, 1, 2)))(*xs),
    "by jax.grad": lambda grad, f, xs, ts: jax.jit(jax.grad(along(grad, f, ts), (0, 1, 2)))(*xs),
}
ASKED = FIRST | SECOND


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(i, marks=pytest.mark.slow) for i in range(12, 300))])
def test_a_random_program_has_the_derivatives_that_jax_gives(seed):
    rng = np.random.default_rng(seed)
    what = [*ASKED][seed % len(ASKED)]
    fun = compose(rng, int(rng.integers(3, 12)), 2, once=what in FIRST)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        xs, ts = (tuple(jnp.asarray(rng.standard_normal(SHAPE)) for _ in range(3)) for _ in range(2))
        expected = ASKED[what](jax.grad, fun, xs, ts)
        for a, b in zip(ASKED[what](fbp.grad, fun, xs, ts), expected, strict=True):
            assert a.dtype == b.dtype
            assert relative_error(a, b, expected) < 1e-6, what  # some of it is computed in float32
