"""Control flow: scan, while, cond. The inner function is differentiated once, and the loop is run the other way.

scan:  h_t, y_t = f(w, h_{t-1}, x_t), t = 1..T
  =>   w̄_t, h̄_{t-1}, x̄_t = pullback_t(h̄_t, ȳ_t), t = T..1, and w̄ = Σ w̄_t.

The pullbacks of f at each step are pytrees of one structure: the forward scan stacks them and the reverse scan reads
them. What does not change from step to step is kept once, outside the stack. And where a pullback reads both h_{t-1} and
h_t, only the first is stacked: the reverse scan comes from the step after, which has just read h_t.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax import lax
from jax.extend.core import Literal
from jax.extend.core import primitives as p

from fbp import _compat
from fbp.core import Rule, Stopped, blank, value, zeros
from fbp.rules import carried
from fbp.rules.common import split
from fbp.rules.residuals import Carved, carve, jitted, refill
from fbp.rules.staging import changing, needed_for, read, run
from fbp.rules.sums import sums_after_loop


def carry_fixpoint(vjp, body, needs, avals, n_consts, n_carry):
    """Needs of the body's inputs once every carry into which a step brings a cotangent wants one, and, for each output
    of the body, whether one flows back from it."""
    while True:
        ys = jax.eval_shape(lambda *xs, needs=needs: vjp(body, needs, *xs)[0], *avals)
        flows = [not isinstance(y, Stopped) for y in ys]
        consts, carry, xs = split(needs, n_consts, n_carry)
        grown = (*consts, *(a or b for a, b in zip(carry, flows, strict=False)), *xs)
        if grown == needs:
            return needs, [*carry, *flows[n_carry:]]
        needs = grown


# ---------------------------------------------------------------------------------------------------------- scan


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["saved", "once", "stacked", "last"],
    meta_fields=["tree", "sources", "handed_on", "sizes", "needs", "avals", "options"],
)
@dataclasses.dataclass(frozen=True)
class Scanned:
    """The residuals of a scan. `refill(Carved(saved_t, tree, sources), once | stacked_t | after_t)` is the pullback of step t,
    where `after_t` is what the step after it found, `stacked_{t+1}`, and behind the last step `last`."""

    saved: list  # what only the pullbacks know, stacked over time
    once: dict[int, Any]  # loop constants and other invariant residuals, by place among the known values
    stacked: dict[int, Any]  # inputs and outputs of the scan, and its carries, by place
    last: dict[int, Any]  # what the scan carries in the end, by place
    tree: Any
    sources: tuple[int | None, ...]
    handed_on: tuple[tuple[int, int], ...]  # places of a carry after a step and, which is stacked, before it
    sizes: tuple[int, int]  # loop constants, carries
    needs: tuple[bool, ...]
    avals: tuple
    options: tuple[int, bool, int | bool, bool]  # length, reverse, unroll, whether its body has places


def _scan_forward(site, *xs, jaxpr, length, reverse, unroll, **params):
    sizes = _compat.scan_counts(params)
    return _scan(site.vjp, jaxpr, site.needs, sizes, (length, reverse, unroll))(*xs)


@functools.lru_cache(maxsize=4096)
def _scan(vjp, jaxpr, needs, sizes, options):
    n_consts, n_carry = sizes
    n_ys = len(jaxpr.out_avals)
    length, reverse, unroll = options
    has_places = carried.has_places(jaxpr)
    body = _compat.jaxpr_fun(jaxpr)
    is_unrolled = unroll is True or (isinstance(length, int) and length <= max(1, unroll))
    vjp = vjp if is_unrolled else vjp.in_loop()

    def scan(*inputs):
        consts, init, xs = split(inputs, n_consts, n_carry)
        wanted, flows = carry_fixpoint(vjp, body, needs, jaxpr.in_avals, *sizes)

        # What goes into the scan and comes out of it is there anyway; the carries between are not.
        sizes_held = (n_consts, True), (n_carry, False), (len(xs), True), (n_carry, False), (n_ys - n_carry, True)
        held = [is_held for size, is_held in sizes_held for _ in range(size)]

        def step(*inputs):
            ys, pullback = vjp(body, wanted, *inputs, held=held)
            ys = [value(y) for y in ys]
            consts, carry, xs = split(inputs, n_consts, n_carry)
            return ys, carve(pullback, [*consts, *xs, *ys[n_carry:], *carry, *ys[:n_carry]])

        # The step is staged once, to see which residuals are invariant, and run as staged.
        staged, (_, carved) = jax.make_jaxpr(step, return_shape=True)(*jaxpr.in_avals)
        run_step = _compat.jaxpr_fun(staged)
        fixed, invariant = _invariant_outputs(staged, consts, n_ys)

        # Known values by place: constants, inputs, outputs, carries before a step and after it, and the invariant residuals.
        first_carry = n_consts + len(xs) + n_ys - n_carry
        first_fixed = first_carry + 2 * n_carry
        places = iter(first_fixed + sum(invariant[:i]) if same else None for i, same in enumerate(invariant))
        sources = tuple(next(places) if source is None else source for source in carved.sources)
        read = {source for source in sources if source is not None}
        before_of = {i + n_carry: i for i in range(first_carry, first_carry + n_carry)}
        handed_on = tuple((after, before) for after, before in before_of.items() if {after, before} <= read)
        to_stack = read - dict(handed_on).keys()

        def run(carry, x):
            new, ys, saved = split(run_step(*consts, *carry, *x), n_carry, n_ys - n_carry)
            carries = {i: x for i, x in enumerate([*carry, *new], first_carry) if i in to_stack}
            return new, (ys, carries, [r for r, same in zip(saved, invariant, strict=True) if not same])

        loop = carried.scan if has_places else lax.scan
        carry, (ys, carries, saved) = loop(run, init, xs, length=length, reverse=reverse, unroll=unroll)

        once = {i: x for i, x in [*enumerate(consts), *enumerate(fixed, first_fixed)] if i in read}
        stacked = carries | {i: x for i, x in enumerate([*xs, *ys], n_consts) if i in read}
        last = {after: carry[before - first_carry] for after, before in handed_on}
        in_avals, how = tuple(jaxpr.in_avals), (*options, has_places)
        residuals = Scanned(saved, once, stacked, last, carved.tree, sources, handed_on, sizes, wanted, in_avals, how)
        return [y if flow else Stopped(y) for y, flow in zip([*carry, *ys], flows, strict=True)], residuals

    return jitted(scan)


def _invariant_outputs(staged, consts, start):
    """The outputs from `start` on of a staged step that depend on its constants alone: their values, and which they are."""
    jaxpr = staged.jaxpr
    outputs, changes = jaxpr.outvars[start:], changing(jaxpr, len(consts))
    invariant = [isinstance(v, Literal) or v not in changes for v in outputs]
    fixed = [v for v, same in zip(outputs, invariant, strict=True) if same]

    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*staged.consts, *consts], strict=False))
    run(needed_for(fixed, jaxpr.eqns)[0], values)
    return read(values, fixed), invariant


@jax.jit
def _reverse_scan(scanned, y_bars):
    n_consts, n_carry = scanned.sizes
    length, reverse, unroll, has_places = scanned.options
    carry_bars, y_bars = split(y_bars, n_carry)
    const_avals, carry_avals, _ = split(scanned.avals, n_consts, n_carry)
    const_needs, carry_needs, _ = split(scanned.needs, n_consts, n_carry)

    def fill(bars, needs, avals):
        return [None if not n else zeros(a) if b is None else b for b, n, a in zip(bars, needs, avals, strict=True)]

    def pull(once, carry, slices):
        (carry_bars, after), (saved, stacked, y_bars) = carry, slices
        pullback = refill(Carved(saved, scanned.tree, scanned.sources), once | stacked | after)
        const_bars, carry_bars, x_bars = split(pullback(*carry_bars, *y_bars), n_consts, n_carry)
        handed_on = {after: stacked[before] for after, before in scanned.handed_on}
        return const_bars, (fill(carry_bars, carry_needs, carry_avals), handed_on), x_bars

    carry = fill(carry_bars, carry_needs, carry_avals), scanned.last
    slices = scanned.saved, scanned.stacked, y_bars
    sums_of = None
    if length and any(const_needs):
        pull, sums_of = sums_after_loop(pull, scanned.once, carry, slices)

    def step(carry, slices):
        const_bars, carry = carry
        new_const_bars, carry, *ys = pull(scanned.once, carry, slices)
        const_bars = [a if b is None else lax.add(a, b) for a, b in zip(const_bars, new_const_bars, strict=True)]
        return (const_bars, carry), ys

    carry = fill([None] * n_consts, const_needs, const_avals), carry
    loop = carried.scan if has_places else lax.scan
    (const_bars, (carry_bars, _)), (x_bars, *factors) = loop(
        step, carry, slices, length=length, reverse=not reverse, unroll=unroll
    )
    if sums_of is not None:
        sums = sums_of(slices, *factors)
        const_bars = [a if b is None else b for a, b in zip(const_bars, sums, strict=True)]
    return [*const_bars, *carry_bars, *x_bars]


def _scan_backward(site, scanned, *y_bars, **_):
    return _reverse_scan(scanned, list(y_bars))


# --------------------------------------------------------------------------------------------------------- while


def _while_forward(site, *xs, cond_nconsts, cond_jaxpr, body_nconsts, body_jaxpr):
    params = {"cond_jaxpr": cond_jaxpr, "body_nconsts": body_nconsts, "body_jaxpr": body_jaxpr}
    ys = site.primitive.bind(*xs, cond_nconsts=cond_nconsts, **params)
    needs = site.needs[cond_nconsts:]
    body = _compat.jaxpr_fun(body_jaxpr)
    _, flows = carry_fixpoint(site.vjp, body, needs, body_jaxpr.in_avals, body_nconsts, len(ys))
    return [y if flow else Stopped(y) for y, flow in zip(ys, flows, strict=True)], ()


def _while_backward(site, residuals, *y_bars, **_):
    raise ValueError(
        "Reverse-mode differentiation does not work for lax.while_loop or lax.fori_loop with dynamic start/stop values: "
        f"{site} would have to keep an unknown number of residuals. Use lax.scan, or lax.fori_loop with Python integers as "
        "bounds, or fbp.while_loop with max_steps; or put stop_gradient around its inputs."
    )


# ---------------------------------------------------------------------------------------------------------- cond


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["index", "saved", "known"],
    meta_fields=["branches", "avals"],
)
@dataclasses.dataclass(frozen=True)
class Branched:
    """The residuals of a cond. The branches save different things, so they share places: `saved` has room for any of
    them, and `branches` says, for each, how to make its pullback of it."""

    index: Any
    saved: list
    known: dict[int, Any]  # operands that the pullbacks read
    branches: tuple  # for each, the tree and sources of its carved pullback, and the places of what it saved
    avals: tuple  # of the operands


def _cond_forward(site, index, *xs, branches, **_):
    return _cond(site.vjp, branches, site.needs[1:])(index, *xs)


@functools.lru_cache(maxsize=4096)
def _cond(vjp, branches, needs):
    def cond(index, *xs):
        stagings, stops, carvings = [], [], []
        for branch in branches:

            def run(*xs, branch=branch):
                ys, pullback = vjp(_compat.jaxpr_fun(branch), needs, *xs)
                return ys, carve(pullback, xs)

            staged, (ys, carved) = jax.make_jaxpr(run, return_shape=True)(*branch.in_avals)
            stagings.append(staged)
            carvings.append(carved)
            stops.append([isinstance(y, Stopped) for y in ys])

        n_ys = len(branches[0].out_avals)
        places, slots = _share_places(
            [[a.update(weak_type=False) for a in staged.out_avals[n_ys:]] for staged in stagings]
        )

        def branch_fun(staged, places):
            def fun(*xs):
                ys, saved = split(_compat.jaxpr_fun(staged)(*xs), n_ys)
                own = dict(zip(places, saved, strict=True))
                return ys, [own[i] if i in own else blank(aval) for i, aval in enumerate(slots)]

            return fun

        ys, saved = lax.switch(index, [branch_fun(s, p) for s, p in zip(stagings, places, strict=True)], *xs)
        flows = tuple(not all(column) for column in zip(*stops, strict=True))
        read = {i for carved in carvings for i in carved.sources if i is not None}
        known = {i: x for i, x in enumerate(xs) if i in read}
        how = tuple((c.tree, c.sources, tuple(p)) for c, p in zip(carvings, places, strict=True))
        branched = Branched(index, saved, known, how, tuple(branches[0].in_avals))
        return [y if flow else Stopped(y) for y, flow in zip(ys, flows, strict=True)], branched

    return jitted(cond)


def _share_places(types):
    """A place for each of the values of each branch, shared by branches where the types agree; and the places' types."""
    slots, places = [], []
    for branch_types in types:
        free = list(range(len(slots)))
        taken = []
        for type_ in branch_types:
            place = next((i for i in free if slots[i] == type_), len(slots))
            if place == len(slots):
                slots.append(type_)
            else:
                free.remove(place)
            taken.append(place)
        places.append(taken)
    return places, slots


@jax.jit
def _reverse_cond(branched, y_bars):
    def reverse(tree, sources, places):
        def fun(saved, known, y_bars):
            pullback = refill(Carved([saved[i] for i in places], tree, sources), known)
            return pullback(*y_bars)

        return fun

    funs = [reverse(*branch) for branch in branched.branches]
    args = branched.saved, branched.known, y_bars
    # A cotangent that is zero in one branch and not in another is written out, so that the branches agree.
    shapes = [jax.eval_shape(fun, *args) for fun in funs]
    flows = [any(s is not None for s in column) for column in zip(*shapes, strict=True)]

    def written_out(fun):
        return lambda *args: [
            zeros(a) if x is None and flow else x for x, a, flow in zip(fun(*args), branched.avals, flows, strict=True)
        ]

    return lax.switch(branched.index, [written_out(fun) for fun in funs], *args)


def _cond_backward(site, branched, *y_bars, **_):
    return [None, *_reverse_cond(branched, list(y_bars))]


RULES = {
    p.scan_p: Rule(_scan_forward, _scan_backward),
    p.while_p: Rule(_while_forward, _while_backward),
    p.cond_p: Rule(_cond_forward, _cond_backward),
}
