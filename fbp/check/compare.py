"""How far apart two gradients are, leaf by leaf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fbp.api import vjp
from fbp.core import Rulebook, is_inexact
from fbp.rules import RULES


def relative_error(a: Any, b: Any, of: Any = None) -> float:
    """max |a - b| / max |b|; 0 for equal arrays, NaN where b has it included, and inf where only one is finite.

    `of`: a pytree whose largest element is the scale instead. (In a gradient, one leaf may be zero but for rounding: the
    bias of the keys in attention, say. It is small beside the others, not beside itself.)
    """
    difference = _difference(a, b)
    return difference / _largest(b if of is None else of) if 0 < difference < float("inf") else difference


def ulps(a: Any, b: Any, of: Any = None) -> float:
    """max |a - b| in units in the last place of the largest element of b (or `of`), in b's dtype."""
    difference = _difference(a, b)
    if not 0 < difference < float("inf"):
        return difference
    info = jnp.finfo(np.asarray(b).dtype)
    largest = max(_largest(b if of is None else of), float(info.tiny))
    return difference / (2.0 ** np.floor(np.log2(largest)) * float(info.eps))


def _difference(a: Any, b: Any) -> float:
    a, b = _wide(a), _wide(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    if not (np.isfinite(a) & np.isfinite(b))[~same].all():
        return float("inf")
    return float(np.abs(a - b)[~same].max())


def _largest(tree: Any) -> float:
    """The largest finite magnitude in a tree of arrays; the smallest positive number if there is none."""
    leaves = [_wide(x) for x in jax.tree.leaves(tree) if is_inexact(jax.typeof(x))]
    return max((float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) for x in leaves), default=0.0) or 5e-324


def _wide(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.complex128 if jnp.issubdtype(x.dtype, jnp.complexfloating) else np.float64)


class Row(NamedTuple):
    """One leaf in one precision: fbp against jax.grad, and along random directions against finite differences."""

    leaf: str
    shape: tuple[int, ...]
    dtype: str
    largest: float
    relative: float
    ulps: float
    finite_differences: float | None  # relative error of the directional derivative; float64 only
    agrees: bool


class Table(NamedTuple):
    """The comparison, printed as text by `str`."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        header = ("leaf", "shape", "dtype", "max |grad|", "relative", "ULPs", "finite diff.", "")
        lines: list[tuple[str, ...]] = [header]
        for row in self.rows:
            difference = "" if row.finite_differences is None else f"{row.finite_differences:.1e}"
            shape = "x".join(map(str, row.shape)) or "scalar"
            last_places = f"{row.ulps:.1f}" if row.ulps < 1e4 else f"{row.ulps:.1e}"
            numbers = f"{row.largest:.3g}", f"{row.relative:.1e}", last_places, difference
            lines.append((row.leaf, shape, row.dtype, *numbers, "" if row.agrees else "<- differs"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = (
            "  ".join(
                cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )
        return "\n".join(line.rstrip() for line in aligned)


class GradientMismatch(AssertionError):
    """fbp, jax.grad and finite differences do not agree; the message is the table, `table` its rows."""

    def __init__(self, table: Table):
        wrong = sum(not row.agrees for row in table.rows)
        super().__init__(f"{wrong} of {len(table.rows)} comparisons differ:\n{table}")
        self.table = table


def check_grads(
    fun: Callable,
    *args: Any,
    rules: Rulebook = RULES,
    relative: float = 1e-10,
    max_ulps: float = 16,
    finite_differences: float = 1e-5,
    seed: int = 0,
) -> Table:
    """Compares the gradient of `fun` by fbp with `jax.grad`'s and with finite differences, leaf by leaf.

    For y = fun(*args) of any shape, the cotangent is a fixed random y_bar, and what is compared is x_bar = y_bar · ∂y/∂x
    for every real or complex leaf x of `args`, in float64 (relative to the largest element) and in float32 (in ULPs of
    it). In float64 also the directional derivative: ⟨x_bar, v⟩ against (f(x + εv) - f(x - εv)) / 2ε · y_bar for a random
    v; a kink within ε of x makes the two differ.

    relative, max_ulps, finite_differences: the tolerances, for float64, float32 and the directional derivative.

    Returns the table. Raises `GradientMismatch`, whose message is the table, where anything differs; TypeError if
    there is nothing to differentiate.

    >>> import jax.numpy as jnp
    >>> table = check_grads(lambda p: jnp.tanh(p["w"]) * p["b"], {"w": 0.3, "b": 2.0})
    >>> [(row.leaf, row.dtype) for row in table.rows]
    [("[0]['b']", 'float64'), ("[0]['w']", 'float64'), ("[0]['b']", 'float32'), ("[0]['w']", 'float32')]
    """
    if not any(is_inexact(jax.typeof(leaf)) for leaf in jax.tree.leaves(args)):
        raise TypeError("check_grads compares gradients, but no argument has a real or complex leaf to differentiate.")
    rows: list[Row] = []
    for dtype in (np.float64, np.float32):
        with jax.enable_x64(dtype == np.float64):
            rows += _compare(fun, _cast(args, dtype), rules, dtype, (relative, max_ulps, finite_differences), seed)
    table = Table(tuple(rows))
    if not all(row.agrees for row in rows):
        raise GradientMismatch(table)
    return table


def _compare(fun, args, rules, dtype, tolerances, seed) -> list[Row]:
    relative, max_ulps, finite_differences = tolerances
    rng = np.random.default_rng(seed)
    ours, y_bar = _pull(lambda *xs: vjp(fun, *xs, rules=rules), args, rng)
    theirs, _ = _pull(lambda *xs: jax.vjp(fun, *xs), args, np.random.default_rng(seed))
    slopes = _slopes(fun, args, ours, y_bar, rng) if dtype == np.float64 else {}
    rows = []
    for (path, x), a, b in zip(_with_paths(args), jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if not is_inexact(jax.typeof(x)):
            continue
        error, last_places, slope = relative_error(a, b), ulps(a, b), slopes.get(path)
        agrees = error <= relative and slope <= finite_differences if slope is not None else last_places <= max_ulps
        agrees &= jax.typeof(a).dtype == jax.typeof(b).dtype and jnp.shape(a) == jnp.shape(b)
        largest = float(np.abs(_wide(b)).max(initial=0.0))
        rows.append(Row(path, jnp.shape(x), str(jax.typeof(a).dtype), largest, error, last_places, slope, bool(agrees)))
    return rows


def _pull(vjp, args, rng):
    y, pullback = vjp(*args)
    y_bar = jax.tree.map(lambda leaf: _random_like(leaf, rng), y)
    return pullback(y_bar), y_bar


def _slopes(fun, args, bars, y_bar, rng) -> dict[str, float]:
    """For each leaf, the relative error of ⟨x_bar, v⟩ against the central difference along v in that leaf alone."""
    leaves, tree = jax.tree.flatten(args)
    flat_bars = jax.tree.leaves(bars)
    errors = {}
    for i, (path, x) in enumerate(_with_paths(args)):
        if not is_inexact(jax.typeof(x)) or not jnp.size(x):
            errors[path] = 0.0
            continue
        v = np.asarray(_random_like(x, rng))
        step = 1e-6 * max(1.0, float(np.abs(np.asarray(x)).max()))

        def along(t, i=i, x=x, v=v):
            moved = [*leaves[:i], np.asarray(x) + t * v, *leaves[i + 1 :]]
            ys = jax.tree.leaves(fun(*jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in moved])))
            return sum(
                _inner(bar, y) for bar, y in zip(jax.tree.leaves(y_bar), ys, strict=True) if is_inexact(jax.typeof(y))
            )

        difference = (along(step) - along(-step)) / (2 * step)
        slope = _inner(flat_bars[i], v)
        size = float(np.sum(np.abs(np.asarray(flat_bars[i]) * v))) or abs(difference)
        errors[path] = float(abs(slope - difference) / size) if size else 0.0
    return errors


def _inner(a, b) -> float:
    """Re Σ a b: JAX pairs a cotangent with a tangent without conjugation."""
    return float(np.real(np.sum(np.asarray(a) * np.asarray(b))))


def _random_like(x, rng):
    aval = jax.typeof(x)
    if not is_inexact(aval):
        return np.zeros(aval.shape, jax.dtypes.float0)
    values = rng.standard_normal(aval.shape)
    if jnp.issubdtype(aval.dtype, jnp.complexfloating):
        values = values + 1j * rng.standard_normal(aval.shape)
    return jnp.asarray(values, aval.dtype)


def _cast(args, dtype):
    """The same arguments in another precision; integers, booleans and keys as they are."""
    wider = {np.float64: np.complex128, np.float32: np.complex64}[dtype]

    def cast(x):
        aval = jax.typeof(x)
        if not is_inexact(aval):
            return x
        return jnp.asarray(np.asarray(x), wider if jnp.issubdtype(aval.dtype, jnp.complexfloating) else dtype)

    return jax.tree.map(cast, args)


def _with_paths(tree) -> Sequence[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
