"""The proof of a rule: what is checked for each case, in each precision."""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import pkgutil
import warnings
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive, jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from fbp.api import vjp
from fbp.check.case import Case
from fbp.check.compare import relative_error, ulps
from fbp.core import is_inexact

FLOAT64_RELATIVE = 1e-10
DTYPES = "float64", "float32", "bfloat16", "complex128"


class Outcome(NamedTuple):
    """What came of one case in one precision. `failures` says in words what disagreed."""

    case: str
    dtype: str
    relative: float  # largest error relative to the largest element of the cotangents, against jax.vjp
    ulps: float  # the same in units in the last place of that element
    checks: int
    failures: tuple[str, ...]


def applies(case: Case, dtype: str) -> bool:
    return {"bfloat16": case.low, "complex128": case.complex}.get(dtype, True)


def run_case(case: Case, dtype: str) -> Outcome:
    """All checks of one case: in float64 and complex128 the whole list below, in the others the comparison alone.

    - x_bars equal those of jax.vjp, jitted; shape and dtype are the primal's;
    - the same for every set of wanted inputs, and without jit;
    - the adjoint identity ⟨y_bar, J v⟩ = ⟨Jᵀ y_bar, v⟩ with JAX's forward mode;
    - under vmap; and the second derivative, ours of ours against JAX's of JAX's;
    - no residual is kept twice, and every residual kept is read; no tracer outlives its trace.
    """
    thorough = dtype in ("float64", "complex128")
    with jax.enable_x64(thorough), jax.numpy_dtype_promotion("standard"):
        return _run(case, dtype, thorough)


def check_case(case: Case, dtype: str) -> None:
    """Raises AssertionError with what disagreed."""
    outcome = run_case(case, dtype)
    assert not outcome.failures, f"{case.name} in {dtype}: " + "; ".join(outcome.failures)


def _run(case: Case, dtype: str, thorough: bool) -> Outcome:
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    args = [jnp.asarray(make(rng, jnp.dtype(dtype))) for make in case.args]
    wanted = [i for i, x in enumerate(args) if is_inexact(jax.typeof(x))]
    xs = [args[i] for i in wanted]

    def of_wanted(fun):
        def partial(*xs):
            full = list(args)
            for i, x in zip(wanted, xs, strict=True):
                full[i] = x
            return [y for y in jax.tree.leaves(fun(*full)) if is_inexact(jax.typeof(y))]

        return partial

    fun, reference = of_wanted(case.fun), of_wanted(case.reference or case.fun)

    def jax_vjp(f, *xs):
        return jax.vjp(reference if f is fun else f, *xs)

    y_bars = [_random(y, rng) for y in jax.eval_shape(fun, *xs)]
    directions = [_random(x, rng) for x in xs]
    failures: list[str] = []
    checks = 0
    worst = [0.0, 0.0]

    def compare(what: str, ours: Any, theirs: Any, measured: bool = False) -> None:
        nonlocal checks
        checks += 1
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if (jnp.shape(a), jax.typeof(a).dtype) != (jnp.shape(b), jax.typeof(b).dtype):
                failures.append(f"{what}: x_bar[{i}] is {jax.typeof(a)}, not {jax.typeof(b)}")
                continue
            relative, last_places = relative_error(a, b, theirs), ulps(a, b, theirs)
            if measured:
                worst[0], worst[1] = max(worst[0], relative), max(worst[1], last_places)
            if relative > FLOAT64_RELATIVE if thorough else last_places > case.ulps:
                failures.append(f"{what}: x_bar[{i}] is off by {relative:.1e} relative, {last_places:.1f} ULPs")

    def both(*xs):
        return [transform(fun, *xs)[1](y_bars) for transform in (vjp, jax_vjp)]

    if thorough:  # first, before an inner function is traced and cached
        checks += 1
        failures += _leaks(fun, xs, y_bars, jax_vjp)
    ours, theirs = jax.jit(both)(*xs)
    compare("jit", ours, theirs, measured=True)
    compare("types", [np.zeros(x.shape, x.dtype) for x in ours], [np.zeros(x.shape, x.dtype) for x in xs])
    if thorough:
        compare("eager", vjp(fun, *xs)[1](y_bars), theirs)
        compare("masks", *_by_mask(fun, xs, y_bars, theirs))
        if case.adjoint:
            compare("adjoint", *_adjoint(fun, xs, y_bars, directions, ours))
        if case.mapped:
            compare("vmap", *_mapped(both, xs))
        if case.second:
            compare("second order", *_second(fun, xs, y_bars, directions, jax_vjp))
        if case.frugal:
            checks += 1
            failures += _residuals(fun, xs, y_bars)
    return Outcome(case.name, dtype, worst[0], worst[1], checks, tuple(failures))


def _by_mask(fun, xs, y_bars, theirs):
    """The cotangents when only some inputs are differentiated, one after the other for every choice of them."""
    ours, expected = [], []
    masks = list(itertools.product((False, True), repeat=len(xs)))[1:-1] if len(xs) <= 3 else []
    for mask in masks:
        chosen = [i for i, wanted in enumerate(mask) if wanted]

        def partial(*some, chosen=chosen):
            return fun(*[some[chosen.index(i)] if i in chosen else x for i, x in enumerate(xs)])

        ours += vjp(partial, *[xs[i] for i in chosen])[1](y_bars)
        expected += [theirs[i] for i in chosen]
    return ours, expected


def _adjoint(fun, xs, y_bars, directions, x_bars):
    """Both sides of the identity, relative to the size of their terms, which may cancel. JAX pairs a cotangent with a
    tangent as Re Σ a b, without conjugation."""

    def terms(bars, tangents):
        return [np.real(np.asarray(bar) * np.asarray(t)) for bar, t in zip(bars, tangents, strict=True)]

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _, y_dots = jax.jvp(fun, xs, directions)
    if any("Using reduced precision" in str(warning.message) for warning in said):
        return [], []  # as JAX says of the forward mode of max pooling on GPUs
    forward, reverse = terms(y_bars, y_dots), terms(x_bars, directions)
    size = sum(np.abs(term).sum() for term in forward)
    if not np.isfinite(size) or not size:
        return [], []
    total = [sum(term.sum() for term in side) for side in (forward, reverse)]
    return [1 + (total[1] - total[0]) / size], [np.ones_like(size)]


def _mapped(both, xs):
    """The cotangents at two points, of which the second has the rows of the first in reverse."""
    batched = [np.stack([x, np.flip(x, 0) if x.ndim and x.shape[0] else x]) for x in map(np.asarray, xs)]
    return jax.jit(jax.vmap(both))(*batched)


def _second(fun, xs, y_bars, directions, jax_vjp):
    """The gradient of ⟨x_bar, v⟩."""

    def second(transform):
        def slope(*xs):
            x_bars = transform(fun, *xs)[1](y_bars)
            return [jnp.sum(bar * v) for bar, v in zip(x_bars, directions, strict=True)]

        slopes, pullback = transform(slope, *xs)
        return pullback([jnp.ones_like(s) for s in slopes])

    return jax.jit(lambda: [second(vjp), second(jax_vjp)])()


def _residuals(fun, xs, y_bars) -> list[str]:
    _, pullback = vjp(fun, *xs)
    leaves, tree = jax.tree.flatten(pullback)
    failures = []
    if len({id(leaf) for leaf in leaves}) < len(leaves):
        failures.append("residuals: an array is kept twice")
    jaxpr = jax.make_jaxpr(lambda leaves: jax.tree.unflatten(tree, leaves)(y_bars))(leaves)
    _, read = dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    unread = [v.aval.str_short() for v, is_read in zip(jaxpr.jaxpr.invars, read, strict=True) if not is_read]
    if unread:
        failures.append(f"residuals: kept but never read: {', '.join(unread)}")
    return failures


def _leaks(fun, xs, y_bars, jax_vjp) -> list[str]:
    """What outlives its trace under ours and not under JAX's own reverse mode (which linear_call leaks, in jax 0.12)."""

    def leak(transform):
        try:
            jax.make_jaxpr(lambda *xs: transform(fun, *xs)[1](y_bars))(*xs)
        except Exception as error:  # of no class of its own
            if "Leaked" not in str(error):
                raise
            return [f"leaks: {str(error).splitlines()[0]}"]
        return []

    with jax.checking_leaks():
        with contextlib.suppress(Exception), _only_new_objects():
            if not leak(vjp):
                return []
        ours = leak(vjp)  # once more, as what JAX says of a leak is made from all objects there are
        return ours if ours and not leak(jax_vjp) else []


@contextlib.contextmanager
def _only_new_objects() -> Iterator[None]:
    """JAX looks for a tracer that is left among all objects, after each trace: in a large program most of a check's time.
    One that is made inside of this is found among those made inside."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _random(x, rng):
    values = rng.standard_normal(x.shape)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        values = values + 1j * rng.standard_normal(x.shape)
    return jnp.asarray(values, x.dtype)


# --------------------------------------------------------------------------------------------------- the chapters


def chapters() -> dict[str, list[Case]]:
    """The cases of every chapter, by its name: the modules of `fbp.check.cases`."""
    package = importlib.import_module("fbp.check.cases")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return {name: importlib.import_module(f"fbp.check.cases.{name}").CASES for name in names}


def primitives_of(case: Case) -> set[Primitive]:
    """The primitives that the program of a case is made of, inner jaxprs included."""
    rng = np.random.default_rng(0)
    with jax.numpy_dtype_promotion("standard"):
        args = [jnp.asarray(make(rng, np.dtype("float32"))) for make in case.args]
        return set(_primitives(jax.make_jaxpr(case.fun)(*args).jaxpr))


def _primitives(jaxpr) -> Iterator[Primitive]:
    for eqn in jaxpr.eqns:
        yield eqn.primitive
        for inner in jaxprs_in_params(eqn.params):
            yield from _primitives(inner)
