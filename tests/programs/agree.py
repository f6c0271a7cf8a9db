"""A program from elsewhere, and the comparison of its gradient with jax.grad's."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp.check.compare import relative_error
from fbp.core import is_inexact


class Program(NamedTuple):
    """`fun` of a pytree of arrays, or of several; numbers are made float64, or float32. `tolerance`: in float64, relative to
    the largest element of the gradient; larger only where the program itself computes in float32."""

    name: str
    fun: Callable[..., Any]
    args: tuple
    tolerance: float = 1e-9


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def uniform(low: float, high: float, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape)


def check(program: Program) -> None:
    """All gradients, with respect to every inexact argument: float64 to 1e-9 of the largest element, float32 to 1e-4:
    of JAX's float32, or of its float64, where its float32 is the less exact. (Random numbers are others in each.)"""
    exact = []
    for dtype, tolerance in (("float64", program.tolerance), ("float32", 1e-4)):
        with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("standard"):
            args = jax.tree.map(lambda x, d=dtype: as_array(x, d), program.args)
            leaves, tree = jax.tree.flatten(args)
            wanted = [i for i, x in enumerate(leaves) if is_inexact(jax.typeof(x))]

            def scalar(*some, leaves=leaves, tree=tree, wanted=wanted):
                full = list(leaves)
                for i, x in zip(wanted, some, strict=True):
                    full[i] = x
                outputs = program.fun(*jax.tree.unflatten(tree, full))
                return sum(weighted(jnp.asarray(y)) for y in jax.tree.leaves(outputs))

            def gradients(grad, scalar=scalar, leaves=leaves, wanted=wanted):
                return jax.jit(grad(scalar, tuple(range(len(wanted)))))(*(leaves[i] for i in wanted))

            ours, theirs = gradients(fbp.grad), gradients(jax.grad)
            exact = exact or theirs
            for a, b, c in zip(ours, theirs, exact, strict=True):
                assert a.dtype == b.dtype and a.shape == b.shape
                error = min(relative_error(a, b, theirs), relative_error(a, c.astype(b.dtype), exact))
                assert error <= tolerance, f"{dtype}: {a} is not {b}"


def weighted(y):
    """A sum in which every element counts, and none as much as another."""
    if not jnp.issubdtype(y.dtype, jnp.inexact):
        return 0.0
    weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
    return jnp.sum(weights * y.real) + (jnp.sum(weights[::-1] * y.imag) if jnp.iscomplexobj(y) else 0.0)


def as_array(x, dtype):
    if isinstance(x, jax.Array) and not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    x = jnp.asarray(x)
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


def one_test_each(programs: list[Program]):
    """The decorator of a test of every one of them. They take minutes: run them with `-m slow`."""

    def decorate(test):
        return pytest.mark.slow(pytest.mark.parametrize("program", programs, ids=lambda p: p.name)(test))

    return decorate
