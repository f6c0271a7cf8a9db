"""The record and the reverse walk. The engine knows no primitive: every operation is a rule in the rulebook it is given.

Forward, each operation of the user's function is applied through its rule as the function runs, and noted: which rule,
where, which values it read and wrote, what it left as residuals. Backward, the notes are read in reverse, and each rule
turns the cotangents of its outputs into cotangents of its inputs. That is all of reverse mode:

    for entry in reversed(tape):  x_bars += entry.bwd(residuals, *y_bars)

Mutable references alone are not left to rules: an operation on one is recorded as a pure function (`fbp.references`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
from jax.experimental.hijax import HiType
from jax.extend import source_info_util
from jax.extend.core import Literal, Primitive, jaxprs_in_params, set_current_trace, take_current_trace

from fbp import _compat, references
from fbp.chains import MOST, Chains
from fbp.core import Op, Patch, Rule, Rulebook, Site, Stopped, elements, is_inexact, jumps, value, whole
from fbp.recompute import Constant, Recall, Replay, Rerun, behind, cheapest, numbers, origins

Slot = int | None  # the place of a value on the tape; None for a value that wants no cotangent


class MissingRule(NotImplementedError):
    """The rulebook in force has no rule for an operation that needs one."""

    def __init__(self, site: Site):
        super().__init__(f"no vjp rule for {site}. Pass rules=RULES | {{...}}, or stop_gradient its input.")
        self.site = site

    def inside(self, outer: Site) -> MissingRule:
        path = "/".join(part for part in (outer.path, self.site.path) if part)
        source = self.site.source if source_info_util.summarize(self.site.source) else outer.source
        return MissingRule(self.site._replace(path=path, source=source))


class OutsideReference(ValueError):
    """A value that wants a cotangent is written to a mutable reference that was made outside."""

    def __init__(self, site: Site):
        super().__init__(
            f"{site} writes a value that is differentiated to a mutable reference made outside of the differentiated "
            "function, or to a box, where no cotangent could come back from. Make the reference inside, or stop_gradient "
            "the value."
        )


class Entry(NamedTuple):
    """One rule applied once. `residuals` has, for each leaf, the number of an array, or a `Constant`; `mesh` is the one in
    whose context it was applied."""

    rule: Rule
    site: Site
    mesh: Any
    params: dict[str, Any]
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    residuals: tuple[int | Constant, ...]
    residuals_tree: Any


class Tape(NamedTuple):
    """The record of a forward pass, without its arrays. Inputs have the slots 0, 1, 2, ... `kept` are the numbers of the
    arrays that the pullback keeps, and `reruns` tell how to have the others that the entries read."""

    entries: tuple[Entry, ...]
    needs: tuple[bool, ...]
    outputs: tuple[Slot, ...]
    kept: tuple[int, ...]
    reruns: tuple[Rerun, ...]
    vjp: Differentiate

    def wanted(self) -> set[int]:
        """The arrays that the rules read, by number."""
        return {k for entry in self.entries for k in numbers(entry.residuals)}


class Record(jax.core.Trace):
    """The trace under which the user's function runs. Each primitive it reaches is applied through its rule."""

    def __init__(self, parent: jax.core.Trace, vjp: Differentiate):
        super().__init__()
        self.requires_low = False
        self.parent: Any = parent
        self.vjp = vjp
        self.rules = vjp.rules
        self.entries: list[Entry] = []
        self.reruns: list[Rerun] = []
        self.chains = Chains(self.rules.recomputes)
        self.slots = 0
        self.arrays: list[jax.Array] = []
        self.index_of: dict[int, int] = {}  # id of an array -> its index: each array is kept once

    def new_tracer(self, primal: Any) -> Recorded:
        self.slots += 1
        return Recorded(self, primal, self.slots - 1)

    def lower(self, x: Any) -> Any:
        """The value behind a tracer of ours."""
        return x.primal if isinstance(x, Recorded) and x._trace is self else x

    def slot(self, x: Any) -> Slot:
        return x.slot if isinstance(x, Recorded) and x._trace is self else None

    def stage_value(self, val):
        """A constant of the user's function, as the array that it would be without us."""
        return val if isinstance(val, jax.core.Tracer) and val._trace is self else self.parent.stage_value(val)

    def process_primitive(self, primitive: Primitive, args, params, /):
        if references.makes_one(primitive):
            return references.make(self, primitive, args, params)
        return self.apply(primitive, args, params, params)

    def cur_qdd(self, x):
        return _compat.contents_of_box(self.parent, self.lower(x))

    def process_custom_jvp_call(self, primitive, fun, jvp, args, /, *, symbolic_zeros):
        params = {"symbolic_zeros": symbolic_zeros}
        return self.apply(primitive, args, params | {"fun": fun, "jvp": jvp}, params | {"subfuns": (fun, jvp)})

    def process_custom_vjp_call(self, primitive, fun, fwd, bwd, args, /, *, out_trees, symbolic_zeros):
        params = {"out_trees": out_trees, "symbolic_zeros": symbolic_zeros}
        return self.apply(primitive, args, params | {"fwd": fwd, "bwd": bwd}, params | {"subfuns": (fun, fwd, bwd)})

    def process_call(self, primitive, fun, args, params, /):
        """A call that JAX hands over as a function is recorded as what the function does. (None is, since jax 0.11.)"""
        with set_current_trace(self):
            return fun.call_wrapped(*args)

    def process_shard_map(self, primitive, fun, args, /, **params):
        """Staged before it is applied: the values inside are on many devices, so Python sees none of them anyway.
        The result has the form that the staged call's has, with values of ours."""
        forms = []

        def bind(*args):
            ys = primitive.bind(*args, subfuns=(fun,), **params)
            forms.append(ys.map(lambda y: None))
            return list(ys)

        staged = jax.make_jaxpr(bind)(*map(jax.typeof, args))
        (call,) = staged.eqns
        known = dict(zip([*staged.jaxpr.constvars, *staged.jaxpr.invars], [*staged.consts, *args], strict=True))
        args = [v.val if isinstance(v, Literal) else known[v] for v in call.invars]
        return forms[0].update(self.apply(primitive, args, call.params, primitive.get_bind_params(call.params)))

    def apply(self, primitive: Primitive, args, params: dict[str, Any], bind_params: dict[str, Any]):
        """Runs one operation and records it. `bind_params` are its parameters where it is run without a rule."""
        if any(references.is_of(self, x) for x in args):
            return references.apply(self, primitive, args, bind_params)
        inputs = tuple(self.slot(x) for x in args)
        xs = [self.lower(x) for x in args]
        avals = tuple(jax.typeof(x) for x in xs)
        needs = tuple(slot is not None for slot in inputs)
        rule = self.rules.find(primitive) if any(needs) else None
        if any(needs) and (inside := _inside(primitive, rule, params, xs)) is not None:
            with set_current_trace(self):
                return inside(*args)
        if rule is None:
            if any(needs) and any(map(_compat.takes_no_differentiated_values, avals)):
                raise OutsideReference(Site(primitive, needs, avals, *_here(), self.vjp))
            ys = primitive.bind_with_trace(self.parent, xs, avals, bind_params)
            unread = any(map(_compat.is_reference, avals))  # what is in a reference from outside is constant
            if any(needs) and not unread and any(is_inexact(jax.typeof(y)) for y in _listed(ys)):
                site = Site(primitive, needs, avals, *_here(), self.vjp)
                raise MissingRule(site)
            if "subfuns" not in bind_params:  # functions that may be called but once
                run = lambda *xs: _listed(primitive.bind(*xs, **bind_params))
                self.note_rerun(primitive, list(jaxprs_in_params(params)), xs, run, _listed(ys))
            return ys

        site = Site(primitive, needs, avals, *_here(), self.vjp)
        fwd = functools.partial(rule.fwd, site, **params)
        try:
            with set_current_trace(self.parent):
                if "fun" in params and self.may_rerun(primitive, xs):  # a function with its own jvp, to be called once
                    fwd = Replay(fwd, *xs)
                ys, residuals = fwd(*xs)
                inner = [fwd.staged.jaxpr] if isinstance(fwd, Replay) else list(jaxprs_in_params(params))
                ys, residuals = self.chain(primitive, inner, xs, ys, residuals)
        except MissingRule as error:  # in an inner function, whose path begins here
            raise error.inside(site) from None
        tracers = [y if self.is_stopped(y) else self.new_tracer(y) for y in _listed(ys)]
        outputs = tuple(self.slot(y) for y in tracers)
        tracers = [value(y) for y in tracers]
        if not isinstance(fwd, Replay) or not fwd.staged.consts:  # what it closes over is not among what it reads
            self.note_rerun(primitive, inner, xs, lambda *xs: _outcome(*fwd(*xs)), _outcome(ys, residuals))
        if (again := rule.again) is not None and self.rules.recomputes and self.can_wait(xs):
            first, *others = map(value, _listed(ys))
            run = lambda *values: [again(site, values[: len(xs)], values[len(xs) :], **params)]
            self.reruns.append(Rerun(run, tuple(map(self.keep, [*xs, *others])), (self.keep(first),)))
        if any(slot is not None for slot in outputs):
            site = site._replace(out_avals=tuple(jax.typeof(y) for y in tracers))
            leaves, tree = jax.tree.flatten(residuals)
            kept = tuple(self.keep(leaf) for leaf in leaves)
            mesh = jax.sharding.get_abstract_mesh()
            self.entries.append(Entry(rule, site, mesh, params, inputs, outputs, kept, tree))
        return tracers if primitive.multiple_results else tracers[0]

    def chain(self, primitive, inner, xs, ys, residuals):
        """The outcome of an operation, cut where it ends too long a chain of elementwise ones (see `fbp.chains`)."""
        if not self.rules.is_cheap(primitive, inner):
            return ys, residuals
        listed = _listed(ys)
        given = self.chains.elementwise(listed, xs)
        if all(new is y for new, y in zip(given, listed, strict=True)):
            return ys, residuals
        new_of = {id(y): new for new, y in zip(given, listed, strict=True)}
        return given, jax.tree.map(lambda leaf: new_of.get(id(leaf), leaf), residuals)

    def can_wait(self, xs) -> bool:
        """Whether what is computed of these values may be computed again. Not where Python sees the values: nothing is staged
        there in which it could wait for the backward pass. Nor with explicit sharding, where an operation runs in the
        context of its mesh."""
        return any(map(_is_staged, xs)) and not jax.sharding.get_abstract_mesh().explicit_axes

    def may_rerun(self, primitive, xs, inner=()) -> bool:
        """Whether an operation, with these programs inside, is better run again than what it gives is kept."""
        return self.can_wait(xs) and self.rules.is_cheap(primitive, inner)

    def note_rerun(self, primitive, inner, xs, run, gives):
        if not inner and jumps(
            [jax.typeof(x) for x in xs], [not _is_staged(x) for x in xs], [jax.typeof(y) for y in gives]
        ):
            return
        if self.may_rerun(primitive, xs, inner):
            spreads = not inner and max(map(elements, gives), default=0) > max(map(elements, xs), default=0)
            self.reruns.append(Rerun(run, tuple(map(self.keep, xs)), tuple(map(self.keep, gives)), spreads))

    def finish(self) -> tuple[tuple[Entry, ...], tuple[Rerun, ...], list[jax.Array]]:
        """The record and its arrays, which are let go of: what JAX caches of a function traced meanwhile (a jit in it)
        may hold this trace for as long as the program runs."""
        entries, reruns, arrays = tuple(self.entries), tuple(self.reruns), self.arrays
        self.invalidate()
        self.parent, self.entries, self.reruns, self.arrays, self.index_of = None, [], [], [], {}
        self.chains = Chains(False)
        return entries, reruns, arrays

    def is_stopped(self, y: Any) -> bool:
        return isinstance(y, Stopped) or not is_inexact(jax.typeof(y))

    def keep(self, leaf: Any) -> int | Constant:
        # A tracer may be of a reference from outside, which the bwd of a custom_vjp writes.
        if not isinstance(leaf, jax.Array | jax.core.Tracer):
            return Constant(leaf)
        if id(leaf) not in self.index_of:
            self.index_of[id(leaf)] = len(self.arrays)
            self.arrays.append(leaf)
        return self.index_of[id(leaf)]


class Recorded(jax.core.Tracer):
    """A value on the tape. Concrete values stay concrete, so Python control flow on them works as it does without fbp."""

    __slots__ = ("primal", "slot")

    def __init__(self, trace: Record, primal: Any, slot: int):
        super().__init__(trace, jax.typeof(primal))
        self.primal = primal
        self.slot = slot

    def to_concrete_value(self):
        return self.primal.to_concrete_value() if isinstance(self.primal, jax.core.Tracer) else self.primal

    def _contents(self):
        """What JAX looks into to see whether a constant of a closure may have a tangent, and is to become an argument."""
        return [("primal", _compat.with_tangent(self.primal))]

    def get_referent(self):
        return self.primal.get_referent() if isinstance(self.primal, jax.core.Tracer) else self

    def _short_repr(self):
        return f"Recorded({self.primal})"


class Differentiate(NamedTuple):
    """The reverse mode of flat functions under one rulebook; what `site.vjp` is. Equal for equal rulebooks.

    waits: what is computed again waits for the cotangents. Else a compiler that sees the forward pass as well would merge the
    two, and keep it; if they are in different loops it cannot."""

    rules: Rulebook
    waits: bool = True

    def __call__(
        self, fun: Callable[..., Sequence], needs: Sequence[bool], *xs, held: Sequence[bool] = (), at_hand: bool = False
    ) -> tuple[list, Pullback]:
        """ys, pullback of the flat function `fun` at `xs`, for the inputs where `needs` says so.

        A y that no cotangent can flow back from comes as `Stopped`. `held` says which of the xs, and then of the ys, are
        kept anyway, so that to keep them for the pullback costs nothing; `at_hand` says that all ys are, and that all xs are
        there in the backward pass, as a caller's arguments are (see `fbp.recompute.cheapest`)."""
        with take_current_trace() as parent:
            trace = Record(parent, self)
            inputs = [trace.new_tracer(x) for x in xs]
            inputs = [tracer if needed else x for needed, tracer, x in zip(needs, inputs, xs, strict=True)]
            with set_current_trace(trace):
                outputs = fun(*inputs)
            ys = [trace.lower(y) if trace.slot(y) is not None else Stopped(y) for y in outputs]
            slots = tuple(trace.slot(y) for y in outputs)
            number = lambda z: trace.index_of.get(id(value(z)))
            free = {number(z) for z, is_held in zip([*xs, *ys], held, strict=False) if is_held}
            free |= {number(y) for y in ys if at_hand}
            there = {number(x) for x in xs if at_hand}
            entries, reruns, arrays = trace.finish()
        tape = Tape(_live(entries, slots), tuple(needs), slots, (), reruns, self)
        kept = cheapest(tape.wanted(), reruns, lambda k: _bytes(arrays[k]), free, there)
        return ys, _keeping(tape, dict(enumerate(arrays)), kept)

    def with_rules(self, rules: Mapping[Primitive, Rule]) -> Differentiate:
        """The same with some rules replaced."""
        return self._replace(rules=self.rules | rules)

    def in_loop(self) -> Differentiate:
        """The same for the body of a loop, whose pullback is called in another one."""
        return self._replace(waits=False)


@jax.tree_util.register_pytree_node_class
class Pullback:
    """y_bars -> x_bars: the reverse walk, with the residuals as its leaves and the tape as its structure.

    A pytree, so it can leave a `jit`, be stacked by a `scan`, mapped, stored. Called with None for a zero cotangent, and
    returns None where none flows."""

    def __init__(self, tape: Tape, residuals: Sequence[Any]):
        self.tape = tape
        self.residuals = residuals

    def __call__(self, *y_bars):
        tape = self.tape
        chains = Chains(tape.vjp.rules.recomputes)
        recall = Recall(dict(zip(tape.kept, self.residuals, strict=True)), tape.reruns, tape.vjp.waits, chains)
        bars = Bars(chains)
        for slot, y_bar in zip(tape.outputs, y_bars, strict=True):
            bars.add(slot, y_bar)
        for entry in reversed(tape.entries):
            entry_bars = [bars.pop(slot) for slot in entry.outputs]
            if all(bar is None for bar in entry_bars):
                continue
            with source_info_util.user_context(entry.site.source.traceback, name_stack=entry.site.source.name_stack):
                with _in_context(entry.mesh):
                    kept = [recall(k, entry_bars) for k in entry.residuals]
                    residuals = jax.tree.unflatten(entry.residuals_tree, kept)
                    x_bars = _checked(entry, entry.rule.bwd(entry.site, residuals, *entry_bars, **entry.params))
                    x_bars = bars.chain(entry, kept, entry_bars, x_bars)
                for slot, x_bar in zip(entry.inputs, x_bars, strict=True):
                    bars.add(slot, x_bar)
        return [bars.pop(slot) if needed else None for slot, needed in enumerate(tape.needs)]

    def only(self, chosen: slice) -> Pullback:
        """The pullback of some of the outputs, without the residuals that only the others would read."""
        return _prune(self.tape._replace(outputs=self.tape.outputs[chosen]), self.residuals)

    def tree_flatten(self):
        return self.residuals, _Same(self.tape)

    @classmethod
    def tree_unflatten(cls, tape: _Same, residuals):
        return cls(tape.value, residuals)


class _Same:
    """A static value that equals only itself, so that comparing two programs never compares what they contain."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self):
        return id(self.value)


def _in_context(mesh: Any) -> contextlib.AbstractContextManager:
    """The context of a mesh: with explicit sharding, an operation may be of another mesh than those around it."""
    current = jax.sharding.get_abstract_mesh()
    another = mesh != current and (mesh.explicit_axes or current.explicit_axes)
    return jax.sharding.use_abstract_mesh(mesh) if another else contextlib.nullcontext()


class Bars:
    """The cotangents on their way back, by slot."""

    def __init__(self, chains: Chains):
        self.of: dict[int, Any] = {}
        self.chains = chains

    def add(self, slot: Slot, bar: Any) -> None:
        """Cotangents of a value used twice add up. y = f(x, x)  =>  x_bar = a_bar + b_bar."""
        if slot is None or bar is None:
            return
        if slot in self.of:
            both = self.of[slot], bar
            (bar,) = self.chains.elementwise([_sum(*both)], both)
        self.of[slot] = bar

    def pop(self, slot: Slot) -> Any:
        return None if slot is None else whole(self.of.pop(slot, None))

    def chain(
        self, entry: Entry, residuals: Sequence[Any], y_bars: Sequence[Any], x_bars: Sequence[Any]
    ) -> Sequence[Any]:
        """The cotangents that an entry gives, cut where they end too long a chain (see `fbp.chains`). It may be longer than that
        of a sum: to cut the sum that ends a layer's pullback is enough."""
        rules = entry.site.vjp.rules
        is_cheap = rules.is_cheap(entry.site.primitive, jaxprs_in_params(entry.params))
        return self.chains.elementwise(x_bars, [*y_bars, *residuals], 2 * MOST) if is_cheap else x_bars


def _sum(a: Any, b: Any) -> Any:
    if isinstance(b, Patch):
        return b.add_to(whole(a))
    if isinstance(a, Patch):
        return a.add_to(b)
    if isinstance(kind := jax.typeof(b), HiType):
        return kind.vspace_add(a, b)
    with _in_context(kind.sharding.mesh):
        return jax.lax.add(a, b)


def _checked(entry: Entry, x_bars: Sequence[Any]) -> list[Any]:
    """A cotangent lives in the space of its primal: same shape, dtype and explicit sharding, one for each input."""
    avals = entry.site.avals
    if len(x_bars) != len(avals):
        raise TypeError(
            f"the rule for {entry.site} returned {len(x_bars)} cotangents for {len(avals)} inputs; None is zero."
        )
    checked = list(x_bars)
    for i, (x_bar, aval, slot) in enumerate(zip(x_bars, avals, entry.inputs, strict=True)):
        if slot is None or x_bar is None or isinstance(aval, HiType):
            continue
        bar = x_bar.aval if isinstance(x_bar, Patch) else jax.typeof(x_bar)
        if (bar.shape, bar.dtype) != (aval.shape, aval.dtype):
            raise TypeError(
                f"the rule for {entry.site} returned a cotangent of type {bar.str_short()} for input {i}, which is "
                f"{aval.str_short()}; a cotangent has the shape and dtype of its primal."
            )
        expected = aval.to_ct_aval().sharding
        if bar.sharding != expected and expected.mesh.explicit_axes:
            checked[i] = jax.sharding.reshard(x_bar, expected)
    return checked


def _prune(tape: Tape, arrays: Sequence[Any]) -> Pullback:
    """Drops the entries from which no output is reached, and the residuals that only they would read."""
    known = dict(zip(tape.kept, arrays, strict=True))
    return _keeping(tape._replace(entries=_live(tape.entries, tape.outputs)), known, {*known})


def _live(entries: Sequence[Entry], outputs: Sequence[Slot]) -> tuple[Entry, ...]:
    """The entries from which an output is reached."""
    live, chosen = set(outputs) - {None}, []
    for entry in reversed(entries):
        if live.intersection(entry.outputs):
            live.update(slot for slot in entry.inputs if slot is not None)
            chosen.append(_prune_inner(entry, live))
    return tuple(reversed(chosen))


def _keeping(tape: Tape, known: Mapping[int, Any], kept: set[int]) -> Pullback:
    """The pullback that keeps these values, as far as they are read, and computes the others again."""
    origin = origins(tape.reruns)
    read = behind(tape.wanted(), origin, kept)
    again = {id(origin[k]) for k in read - kept}
    used = tuple(sorted(read & kept))
    reruns = tuple(rerun for rerun in tape.reruns if id(rerun) in again)
    return Pullback(tape._replace(kept=used, reruns=reruns), [known[k] for k in used])


def _prune_inner(entry: Entry, live: set[Slot]) -> Entry:
    """The same for an inner function, whose pullback is the residual of an entry, if some of its outputs are not read."""
    if all(slot is None or slot in live for slot in entry.outputs):
        return entry
    inner = jax.tree.unflatten(entry.residuals_tree, entry.residuals)
    if not isinstance(inner, Pullback):
        return entry
    outputs = tuple(
        slot if outer in live else None for slot, outer in zip(inner.tape.outputs, entry.outputs, strict=True)
    )
    inner = _prune(inner.tape._replace(outputs=outputs), inner.residuals)
    leaves, tree = jax.tree.flatten(inner, is_leaf=lambda leaf: isinstance(leaf, Constant))
    return entry._replace(residuals=tuple(leaves), residuals_tree=tree)


def _inside(primitive: Primitive, rule: Rule | None, params: dict[str, Any], xs: Sequence[Any]) -> Callable | None:
    """What is recorded in the place of an operation that stands for a function, if this one does."""
    if rule is not None:
        return rule.inside(**params) if any(map(_is_staged, xs)) else None
    return functools.partial(primitive.fun, **params) if isinstance(primitive, Op) else None


def _is_staged(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer) and x.to_concrete_value() is None


def _bytes(x: Any) -> int:
    return elements(x) * getattr(x.dtype, "itemsize", 8)


def _here() -> tuple[str, source_info_util.SourceInfo]:
    source = source_info_util.current()
    source = source.replace(name_stack=source_info_util.current_name_stack())
    return _compat.path(source), source


def _outcome(ys: Any, residuals: Any) -> list:
    """What a rule's fwd gives, flat."""
    return [*map(value, _listed(ys)), *jax.tree.leaves(residuals)]


def _listed(ys: Any) -> list:
    """A rule's output as a list: of several results, or of the one. (Stopped is a tuple, but one result.)"""
    return list(ys) if isinstance(ys, list | tuple) and not isinstance(ys, Stopped) else [ys]
