"""A case: one program whose gradient is put to the proof. Each rule has at least one, in the chapter of its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Maker = Callable[[np.random.Generator, Any], np.ndarray]  # (rng, dtype) -> an argument


class Case(NamedTuple):
    """`fun` of arrays made by `args`. Which rules it proves is read off its jaxpr.

    name: "tanh", "dot_general/batched".
    complex: whether it also holds for complex inputs.
    low: whether it makes sense in bfloat16.
    ulps: how far it may be from JAX in float32 and bfloat16, in units in the last place of the largest element.
    second: whether its second derivative is compared too.
    adjoint: whether its tangent map is exact, so that the adjoint identity holds to rounding (not where it rounds).
    frugal: whether all that is kept is read (not where what is kept for one output is spared if only others are used).
    mapped: whether it is compared under vmap (not where JAX cannot map it).
    reference: the same function for JAX, where JAX cannot differentiate `fun`.
    """

    name: str
    fun: Callable[..., Any]
    args: tuple[Maker, ...]
    complex: bool = False
    low: bool = True
    ulps: float = 8
    second: bool = True
    adjoint: bool = True
    frugal: bool = True
    mapped: bool = True
    reference: Callable[..., Any] | None = None


def normal(*shape: int) -> Maker:
    """Standard normal numbers, complex ones for a complex dtype."""

    def make(rng, dtype):
        x = rng.standard_normal(shape)
        return (x + 1j * rng.standard_normal(shape) if np.issubdtype(dtype, np.complexfloating) else x).astype(dtype)

    return make


def uniform(low: float, high: float, *shape: int) -> Maker:
    """Numbers between low and high: for functions with a smaller domain."""
    return lambda rng, dtype: rng.uniform(low, high, shape).astype(dtype)


def integers(low: int, high: int, *shape: int) -> Maker:
    """int32 numbers in [low, high)."""
    return lambda rng, dtype: rng.integers(low, high, shape).astype(np.int32)


def distinct(*shape: int) -> Maker:
    """Numbers no two of which are equal or near, for operations that compare."""
    return lambda rng, dtype: (rng.permutation(int(np.prod(shape))).reshape(shape) / 4 - 1).astype(dtype)


def fixed(value: Any) -> Maker:
    """This very array, in the dtype under test where it is floating: for ties, zeros and infinities."""
    x = np.asarray(value)
    return lambda rng, dtype: x.astype(dtype) if np.issubdtype(x.dtype, np.inexact) else x
