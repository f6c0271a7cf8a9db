"""Products that a loop adds up, step by step.

W̄ = Σ_t x_tᵀ g_t = [x_1; ...; x_T]ᵀ [g_1; ...; g_T]: the sum of the products of all steps is one product, over the steps
too. So W̄ need not be read and written in each, and a large product is faster than many small ones. For that the g_t have
to be kept until the loop has ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import JaxprEqn, Literal, Var
from jax.extend.core import primitives as p

from fbp.rules.staging import changing, needed_for, read, run, variables, without_calls

# Linear maps of one array: of a sum they give the sum.
_LINEAR = {p.transpose_p, p.reshape_p, p.squeeze_p, p.slice_p, p.neg_p, p.broadcast_in_dim_p, p.reduce_sum_p}


def sums_after_loop(step: Callable, once: Any, carry: Any, slices: Any) -> tuple[Callable, Callable]:
    """`step(once, carry, slice) -> sums, carry, ys`, where the `sums` of all steps are to be added up, without those sums
    that are better had after the loop: `step(...) -> sums, carry, ys, factors`, and `after(slices, factors) -> sums`, of
    the stacked slices and factors. Each has None in the places of the other's.
    """
    staged, shapes = jax.make_jaxpr(step, return_shape=True)(once, carry, _slice_types(slices))
    staged = jax.make_jaxpr(without_calls(staged))(*staged.in_avals)
    jaxpr, tree = staged.jaxpr, jax.tree.structure(shapes)
    n_sums = len(jax.tree.leaves(shapes[0]))
    stacked = jaxpr.invars[len(jaxpr.invars) - len(jax.tree.leaves(slices)) :]
    postponed = _postpone(jaxpr, n_sums, changing(jaxpr, len(jax.tree.leaves(once))), {*stacked})
    factors = [v for v in postponed.factors() if v not in stacked]
    outputs = [Literal(None, None) if i in postponed.outputs else v for i, v in enumerate(jaxpr.outvars)]
    eqns, _, _ = needed_for([*outputs, *factors], jaxpr.eqns)

    def shortened(*args):
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*staged.consts, *jax.tree.leaves(args)], strict=True))
        run(eqns, values)
        return *jax.tree.unflatten(tree, read(values, outputs)), read(values, factors)

    def after(slices, given):
        values = dict(zip([*stacked, *factors], [*jax.tree.leaves(slices), *given], strict=True))
        postponed.run(values)
        sums = [values[jaxpr.outvars[i]] if i in postponed.outputs else None for i in range(n_sums)]
        return jax.tree.unflatten(jax.tree.structure(shapes[0]), sums)

    return shortened, after


def _slice_types(slices: Any) -> Any:
    """The types of what a step of a loop gets of the stacked slices."""
    if not jax.tree.leaves(slices):
        return slices
    seen = []
    step = lambda _, xs: (None, seen.append(jax.tree.map(jax.typeof, xs)))
    jax.eval_shape(lambda slices: jax.lax.scan(step, None, slices), slices)
    return seen[0]


class Postponed(NamedTuple):
    """Sums over the steps of a loop that are computed after it."""

    outputs: set[int]  # which of the sums are so
    products: dict[Var, tuple[JaxprEqn, Var, Var]]  # each product, with its factors
    maps: list[JaxprEqn]  # from the products to the sums

    def factors(self) -> list[Var]:
        return list(dict.fromkeys(v for _, a, b in self.products.values() for v in (a, b)))

    def run(self, values: dict[Var, Any]) -> None:
        """Adds the sums to the values of the factors, which are stacked over the steps."""
        for v, (eqn, a, b) in self.products.items():
            (a_contracted, b_contracted), batch = eqn.params["dimension_numbers"]
            behind = lambda axes: tuple(axis + 1 for axis in axes)
            contracted = (0, *behind(a_contracted)), (0, *behind(b_contracted))
            params = eqn.params | {"dimension_numbers": (contracted, tuple(map(behind, batch)))}
            values[v] = eqn.primitive.bind(values[a], values[b], **params)
        run(self.maps, values)


def _postpone(jaxpr: Any, n_sums: int, changes: set[Var], stacked: set[Var]) -> Postponed:
    """Of the first `n_sums` outputs of a staged step, those that are linear maps of a product of two values that change, if
    what each step has to keep for it is smaller than the product; and, in all, than what it keeps anyway (`stacked`)."""
    made_by = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    first = _first_of_equals(jaxpr.eqns)
    spare = sum(map(_size, stacked))
    postponed = Postponed(set(), {}, [])
    mapped: set[Var] = set()
    for i, v in enumerate(jaxpr.outvars[:n_sums]):
        chain = []
        while isinstance(v, Var) and v in made_by and made_by[v].primitive in _LINEAR and len(made_by[v].invars) == 1:
            chain.append(v)
            v = made_by[v].invars[0]
        if not isinstance(v, Var) or v not in made_by or made_by[v].primitive is not p.dot_general_p:
            continue
        if v not in postponed.products:
            factors = [first.get(x, x) for x in variables(made_by[v].invars) if x in changes]
            kept = sum(map(_size, {*factors} - stacked - {*postponed.factors()}))
            if len(factors) < 2 or kept > min(_size(v), spare):
                continue
            spare -= kept
            a, b = factors
            postponed.products[v] = made_by[v], a, b
        postponed.outputs.add(i)
        mapped.update(chain)
    postponed.maps.extend(eqn for eqn in jaxpr.eqns if mapped.intersection(eqn.outvars))
    return postponed


def _size(v: Any) -> int:
    return v.aval.size


def _first_of_equals(eqns: Sequence[JaxprEqn]) -> dict[Var, Var]:
    """For each variable that is computed as one before it is: that one. (XLA merges them, but not what a loop stacks.)"""
    seen, first = {}, {}
    for eqn in eqns:
        key = (
            eqn.primitive,
            tuple(eqn.params.items()),
            tuple(id(first.get(v, v) if isinstance(v, Var) else v) for v in eqn.invars),
        )
        with contextlib.suppress(TypeError):  # parameters without a hash
            first |= dict(zip(eqn.outvars, seen.setdefault(key, eqn.outvars), strict=True))
    return first
