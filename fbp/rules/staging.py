"""Staged functions: as parameters of an operation, and as lists of equations, to run some of them and to find those that a
value depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
from jax.extend import source_info_util
from jax.extend.core import JaxprEqn, Literal, Var
from jax.extend.core import primitives as p

from fbp import _compat
from fbp.rules.common import split

Values = dict[Var, Any]


class Staged(NamedTuple):
    """A flat function that an operation can have as a parameter: what it closes over is not in it, but comes as its first
    `n_consts` inputs, so that it has cotangents as any input has."""

    jaxpr: Any
    n_consts: int

    def __call__(self, *args):
        consts, xs = split(args, self.n_consts)
        return jax.core.eval_jaxpr(self.jaxpr, consts, *xs)


def stage(fun: Callable[..., Sequence], *avals: Any) -> tuple[Staged, list]:
    """A flat function, staged for inputs of these types, and the values that it closes over."""
    jaxpr, consts = _compat.opened(jax.make_jaxpr(fun)(*avals))
    return Staged(jaxpr, len(consts)), consts


def variables(atoms: Iterable[Any]) -> list[Var]:
    return [v for v in atoms if not isinstance(v, Literal)]


def read(values: Values, atoms: Sequence[Any]) -> list[Any]:
    return [v.val if isinstance(v, Literal) else values[v] for v in atoms]


def run(eqns: Iterable[JaxprEqn], values: Values) -> None:
    """Applies equations to the values of their variables, and adds those of their results."""
    for eqn in eqns:
        values.update(zip(eqn.outvars, apply(eqn, read(values, eqn.invars)), strict=True))


def apply(eqn: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """The results of an equation, of these inputs in the place of its own."""
    with _in_place_of(eqn), eqn.ctx.manager:
        ys = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return list(ys) if eqn.primitive.multiple_results else [ys]


def without_calls(jaxpr: Any) -> Callable[..., list]:
    """The function of a closed jaxpr, with the equations of each jitted function in the place of its call."""

    def fun(*xs):
        values = dict(zip([*jaxpr.jaxpr.constvars, *jaxpr.jaxpr.invars], [*jaxpr.consts, *xs], strict=True))
        for eqn in jaxpr.jaxpr.eqns:
            if eqn.primitive is p.jit_p:
                with _in_place_of(eqn):
                    ys = without_calls(eqn.params["jaxpr"])(*read(values, eqn.invars))
                values.update(zip(eqn.outvars, ys, strict=True))
            else:
                run([eqn], values)
        return read(values, jaxpr.jaxpr.outvars)

    return fun


def changing(jaxpr: Any, n_fixed: int) -> set[Var]:
    """The variables of a step of a loop that change from step to step, where its first `n_fixed` inputs do not."""
    found = set(jaxpr.invars[n_fixed:])
    for eqn in jaxpr.eqns:
        if eqn.effects or found.intersection(variables(eqn.invars)):
            found.update(eqn.outvars)
    return found


def needed_for(
    wanted: Iterable[Any], eqns: Sequence[JaxprEqn], given: Callable[[JaxprEqn], bool] = lambda eqn: False
) -> tuple[list[JaxprEqn], list[Var], set[Var]]:
    """The equations from which the wanted values are computed; which values of `given` equations they begin with, and
    which variables of no equation."""
    missing = set(variables(wanted))
    chosen, starts = [], []
    for eqn in reversed(eqns):
        if read_here := [v for v in eqn.outvars if v in missing]:
            missing.difference_update(read_here)
            if given(eqn):
                starts += read_here
            else:
                missing.update(variables(eqn.invars))
                chosen.append(eqn)
    return chosen[::-1], starts[::-1], missing


def _in_place_of(eqn: JaxprEqn):
    """The context in which what is traced counts as of the user's line, and name scope, of an equation."""
    return source_info_util.user_context(
        eqn.source_info.traceback, name_stack=source_info_util.current_name_stack() + eqn.source_info.name_stack
    )
