"""Arrays that a loop carries and writes to in each step.

XLA writes such an array in place if all that is read of it before is needed for what is written. In a loop that is
differentiated it is not: what a step reads is a residual too, and where a cotangent has been read, zeros are written. So
the whole array is copied in each step, and T steps take T². Here it is needed, and each part is read once, into memory of
its own:

    y = h[i];  h[j] = z      =>      y, 0 = read(h, i);  h[j + 0] = z

To the compiler the 0 is a number like any other, and `read` a branch that may not be taken: the one thing that it does not
compute again in every place where the result is used.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var, jaxprs_in_params
from jax.extend.core import primitives as p

from fbp.core import blank
from fbp.rules import choices
from fbp.rules.staging import Values, apply, read, variables, without_calls

_READS = {p.dynamic_slice_p, p.gather_p}
_WRITES = {p.dynamic_update_slice_p: 2, p.scatter_p: 1, p.scatter_add_p: 1}  # with one of the inputs that say where


def has_places(jaxpr: Jaxpr | ClosedJaxpr) -> bool:
    """Whether a program, or the reverse of one, may write to a place of an array: whether it reads or writes one."""
    return any(
        eqn.primitive in _READS or eqn.primitive in _WRITES or any(map(has_places, jaxprs_in_params(eqn.params)))
        for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns
    )


def scan(step: Callable, init: Any, xs: Any, **options: Any) -> tuple[Any, Any]:
    """`lax.scan` of a step that reads what it carries before it writes there."""
    if not any(choices.is_written_in_place(jax.typeof(x)) for x in jax.tree.leaves(init)):
        return lax.scan(step, init, xs, **options)

    def reading_first(carry, x):
        staged, shapes = jax.make_jaxpr(step, return_shape=True)(carry, x)
        staged = jax.make_jaxpr(without_calls(staged))(*staged.in_avals)
        jaxpr, carry = staged.jaxpr, jax.tree.leaves(carry)
        values = dict(
            zip([*jaxpr.constvars, *jaxpr.invars], [*staged.consts, *carry, *jax.tree.leaves(x)], strict=True)
        )
        _run(jaxpr.eqns, _reads_before_writes(jaxpr, len(carry)), values)
        return jax.tree.unflatten(jax.tree.structure(shapes), read(values, jaxpr.outvars))

    return lax.scan(reading_first, init, xs, **options)


def _reads_before_writes(jaxpr: Jaxpr, n_carry: int) -> dict[int, list[int]]:
    """For each equation that writes to a carried array those that read what was there, by their places in the program.

    h -> reads, write -> h' -> reads, write -> ... -> the h that is carried on."""
    users: dict[Var, list[int]] = {}
    for i, eqn in enumerate(jaxpr.eqns):
        for v in {*variables(eqn.invars)}:
            users.setdefault(v, []).append(i)

    def only_for(i: int, write: int) -> bool:
        """Whether all that is done with what is read is one operation, whose result is written: x[i] += y."""
        (between, *more) = users.get(jaxpr.eqns[i].outvars[0], [write])
        return not more and all(users.get(v) == [write] for v in jaxpr.eqns[between].outvars)

    found: dict[int, list[int]] = {}
    for v, last in zip(jaxpr.invars[:n_carry], jaxpr.outvars[:n_carry], strict=True):
        chain: dict[int, list[int]] = {}
        while v is not last and v in users and choices.is_written_in_place(v.aval) and v not in jaxpr.outvars:
            *reads, write = users[v]
            if not _is(jaxpr.eqns[write], _WRITES, v) or not all(_is(jaxpr.eqns[i], _READS, v) for i in reads):
                break
            chain[write] = [i for i in reads if not only_for(i, write)]
            (v,) = jaxpr.eqns[write].outvars
        if v is last:
            found |= chain
    return found


def _is(eqn: Any, primitives: Container, v: Var) -> bool:
    """Whether an equation is one of these, of some place of v."""
    return (
        eqn.primitive in primitives
        and eqn.invars[0] is v
        and v not in variables(eqn.invars[1:])
        and all(w.aval.size for w in eqn.invars)
    )


def _run(eqns: list[Any], before: dict[int, list[int]], values: Values) -> None:
    """The step, with each write after the reads that come `before` it."""
    reads = {i for found in before.values() for i in found}
    zeros: dict[int, jax.Array] = {}
    for i, eqn in enumerate(eqns):
        inputs = read(values, eqn.invars)
        if i in reads:
            y, zeros[i] = _read_once(eqn, inputs)
            ys = [y]
        else:
            for j in before.get(i, ()):
                where = _WRITES[eqn.primitive]
                inputs[where] += lax.convert_element_type(zeros[j], eqn.invars[where].aval.dtype)
            ys = apply(eqn, inputs)
        values.update(zip(eqn.outvars, ys, strict=True))


def _read_once(eqn: JaxprEqn, inputs: list[Any]) -> tuple[jax.Array, jax.Array]:
    """What an equation reads, and 0."""
    place = jnp.ravel(inputs[1])[0]
    never = (place | 1) == 0
    otherwise = lambda: (blank(eqn.outvars[0].aval), jnp.int32(1))
    return lax.cond(never, otherwise, lambda: (*apply(eqn, inputs), jnp.int32(0)))
