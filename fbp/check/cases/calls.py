"""Cases for `fbp.rules.calls`."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import io_callback
from jax.extend.core import primitives as p

from fbp.check.case import Case, fixed, integers, normal, uniform

X = (normal(2, 3),)
XY = (normal(2, 3), normal(2, 3))


def layer(x, y):
    return jnp.tanh(x) * y, x * x


def closed_call(x, y):
    params = {"call_jaxpr": jax.make_jaxpr(layer)(x, y)}
    return p.closed_call_p.bind(x, y, **p.closed_call_p.get_bind_params(params))


@jax.custom_jvp
def with_jvp(x, y, n):
    return jnp.sin(x) * y, x * n


@with_jvp.defjvp
def _(primals, tangents):
    x, y, n = primals
    x_dot, y_dot, _ = tangents
    return with_jvp(x, y, n), (jnp.cos(x) * y * x_dot + jnp.sin(x) * y_dot, x_dot * n)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def with_vjp(power, tree, n):
    return tree["x"] ** power * tree["y"], n


with_vjp.defvjp(
    lambda power, tree, n: (with_vjp(power, tree, n), tree),
    lambda power, tree, bars: (
        {"x": bars[0] * power * tree["x"] ** (power - 1) * tree["y"], "y": bars[0] * tree["x"] ** power},
        None,
    ),
)


@jax.custom_gradient
def clipped(x):
    return x * x, lambda g: jnp.clip(2 * x * g, -0.5, 0.5)


def solved(a, b):
    """a may be any invertible matrix: solved by Newton's iteration for its inverse, which knows only products with it."""

    def solve(matvec, b):
        matrix = jax.vmap(matvec, out_axes=1)(jnp.eye(len(b), dtype=b.dtype))
        start = matrix.conj().T / jnp.sum(jnp.abs(matrix) ** 2)
        return lax.fori_loop(0, 40, lambda _, x: 2 * x - x @ matrix @ x, start) @ b

    return lax.custom_linear_solve(lambda x: jnp.sin(a) @ x, b, solve, solve)


def root(c):
    newton = lambda f, x: lax.fori_loop(0, 20, lambda _, x: x - f(x) / jax.jvp(f, (x,), (jnp.ones_like(x),))[1], x)
    return lax.custom_root(
        lambda x: x**3 + c * x - 1, jnp.full_like(c, 0.5), newton, lambda g, y: y / g(jnp.ones_like(y))
    )


def outside(callback, x):
    """sin x, computed by NumPy, and without a cotangent."""
    return callback(np.sin, jax.typeof(x), lax.stop_gradient(x))


def scaled(r, x):
    """r x, without a cotangent for r."""
    r = lax.stop_gradient(r)
    return jax.custom_derivatives.linear_call(lambda r, x: r * x, lambda r, y_bar: r * y_bar, r, x)


CASES = [
    Case("jit", jax.jit(layer), XY, complex=True),
    Case("jit/nested", jax.jit(lambda x, y: jax.jit(layer)(x * y, y)), XY),
    Case("jit/inlined", jax.jit(layer, inline=True), XY),
    Case("jit/equal layers", lambda x, y: functools.reduce(lambda h, _: jax.jit(layer)(h, y)[0], range(4), x), XY),
    Case("closed_call", closed_call, XY),
    Case("custom_jvp", with_jvp, (normal(3), normal(3), integers(1, 4, 3)), adjoint=True),
    Case("custom_jvp/jit", jax.jit(lambda x, y: with_jvp(x * y, y, 2)[0]), XY),
    Case("custom_jvp/vmap", jax.vmap(lambda x: with_jvp(x, 2 * x, 3)[0]), X),
    Case("relu", jax.nn.relu, (fixed([-1.0, 0.0, 2.0]),)),
    Case("logsumexp", jax.nn.logsumexp, X),
    # A custom_vjp function has no forward mode, hence no adjoint identity to check.
    Case("custom_vjp", lambda x, y, n: with_vjp(3, {"x": x, "y": y}, n), (*XY, integers(1, 4, 3)), adjoint=False),
    Case(
        "custom_vjp/jit",
        jax.jit(lambda x, y: jax.tree.leaves(with_vjp(2, {"x": x * y, "y": y}, 1))[0]),
        XY,
        adjoint=False,
    ),
    Case("custom_vjp/vmap", jax.vmap(lambda x: jax.tree.leaves(with_vjp(2, {"x": x, "y": x}, 1))[0]), X, adjoint=False),
    Case("custom_gradient", clipped, X, adjoint=False, second=False),
    Case("linear_solve", solved, (uniform(0.5, 2.5, 3, 3), normal(3)), low=False, ulps=64),
    Case(
        "linear_solve/symmetric",
        lambda a, b: lax.custom_linear_solve(lambda x: a * x, b, lambda _, b: b / a, symmetric=True),
        (uniform(1, 2, 3), normal(3)),
    ),
    Case(
        "linear_solve/cg",
        lambda a, b: jax.scipy.sparse.linalg.cg(lambda x: a.T @ (a @ x) + x, b)[0],
        (normal(3, 3), normal(3)),
        low=False,
        ulps=64,
    ),
    Case("custom_root", root, (uniform(1, 2),), low=False),
    Case("pure_callback", lambda x: x * outside(functools.partial(jax.pure_callback, vmap_method="sequential"), x), X),
    Case("io_callback", lambda x: x * outside(io_callback, x), X),
    Case("linear_call", lambda x, y: scaled(jnp.sin(x), y), (normal(3), normal(3)), mapped=False),
    Case("linear_call/jit", jax.jit(lambda x: scaled(2.0, jnp.sin(x))), (normal(3),), mapped=False),
]

if importlib.util.find_spec("jax.experimental.overlap"):  # since jax 0.11
    from jax.experimental.overlap import program_order  # pyright: ignore[reportMissingImports]

    ordered = program_order(lambda x, y: (jnp.tanh(x) * y, x * x), enforce=False)
    CASES.append(Case("program_order", ordered, XY, adjoint=False, reference=layer))
