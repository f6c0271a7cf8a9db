"""Recomputation: `jax.checkpoint`. The backward pass computes again what it would have kept, save what the policy keeps.

y = f(x)  =>  the forward pass of f, as the rules run it, is staged: x -> y, r, with r the residuals of its pullback. Going
back from r, equation by equation, one comes to inputs, or to values that the policy saves. These are kept, and before
the pullback is applied the equations between them and r are run again.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax import lax
from jax.extend.core import primitives as p

from fbp import _compat
from fbp.core import Rule, Stopped
from fbp.rules.common import keep_nothing, where_flowing
from fbp.rules.residuals import Carved, carve, refill
from fbp.rules.staging import needed_for, read, run, without_calls


@functools.partial(jax.tree_util.register_dataclass, data_fields=["saved", "inputs"], meta_fields=["pull"])
@dataclasses.dataclass(frozen=True)
class Rematerialized:
    """What is kept of a forward pass, and `pull(saved, inputs, y_bars)`, its backward pass."""

    saved: list
    inputs: list
    pull: Callable


@functools.lru_cache(maxsize=4096)
def _split(vjp, jaxpr, avals, needs, policy, prevent_cse):
    """The forward pass of a checkpointed function, (xs -> ys, saved); the places of the inputs that the backward pass
    reads; that pass; and through which ys no cotangent flows."""

    def forward(*xs):
        ys, pullback = vjp(_compat.jaxpr_fun(jaxpr), needs, *xs)
        return ys, carve(pullback, xs)

    staged, (ys, carved) = jax.make_jaxpr(forward, return_shape=True)(*avals)
    if policy is not None:  # it is asked of what is inside of jitted functions, too
        staged = jax.make_jaxpr(without_calls(staged))(*avals)
    eqns, inputs = staged.jaxpr.eqns, staged.jaxpr.invars
    constants = dict(zip(staged.jaxpr.constvars, staged.consts, strict=True))
    outputs, residuals = staged.jaxpr.outvars[: len(ys)], staged.jaxpr.outvars[len(ys) :]

    def is_saved(eqn):  # an effect takes place once
        return bool(eqn.effects) or _compat.is_saveable(policy, eqn)

    again, saved, starts = needed_for(residuals, eqns, is_saved)
    read_places = [i for i, v in enumerate(inputs) if v in starts or i in carved.sources]
    effects = [eqn for eqn in eqns if eqn.effects]
    needed, _, _ = needed_for([*outputs, *saved, *(v for eqn in effects for v in eqn.invars)], eqns)
    chosen = {id(eqn) for eqn in [*needed, *effects]}
    once = [eqn for eqn in eqns if id(eqn) in chosen]

    @functools.partial(jax.checkpoint, prevent_cse=prevent_cse, policy=policy)
    def first(*xs):
        values = constants | dict(zip(inputs, xs, strict=True))
        run(once, values)
        return read(values, outputs), read(values, saved)

    @jax.jit
    def pull(saved_values, input_values, y_bars):
        if (
            prevent_cse
        ):  # else XLA finds these equations to be those of the forward pass, and keeps their values after all
            saved_values, input_values = _held_back((saved_values, input_values))
        known = dict(zip(read_places, input_values, strict=True))
        values = constants | dict(zip(saved, saved_values, strict=True)) | {inputs[i]: x for i, x in known.items()}
        run(again, values)
        return refill(Carved(read(values, residuals), carved.tree, carved.sources), known)(*y_bars)

    return jax.jit(first), read_places, pull, [isinstance(y, Stopped) for y in ys]


def _held_back(values):
    """The arrays among the values behind a barrier. (References have none.)"""
    leaves, tree = jax.tree.flatten(values)
    places = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]
    held = dict(zip(places, lax.optimization_barrier([leaves[i] for i in places]), strict=True))
    return jax.tree.unflatten(tree, [held.get(i, x) for i, x in enumerate(leaves)])


def _remat_forward(site, *xs, jaxpr, prevent_cse, policy, **_):
    first, read_places, pull, stopped = _split(site.vjp, jaxpr, site.avals, site.needs, policy, prevent_cse)
    ys, saved = first(*xs)
    ys = [Stopped(y) if stop else y for y, stop in zip(ys, stopped, strict=True)]
    return ys, Rematerialized(saved, [xs[i] for i in read_places], pull)


def _remat_backward(site, kept, *y_bars, **_):
    return kept.pull(kept.saved, kept.inputs, y_bars)


def _barrier_backward(site, _, *y_bars):
    """The cotangents are held together as the values were."""
    return where_flowing(y_bars, lambda places: lax.optimization_barrier([y_bars[i] for i in places]))


RULES = {
    p.remat_p: Rule(_remat_forward, _remat_backward),
    _compat.optimization_barrier_p: Rule(keep_nothing, _barrier_backward),
}
