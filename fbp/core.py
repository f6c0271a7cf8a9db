"""The vocabulary: a Rule says how one operation is run and reversed, a Site says where, a Rulebook holds the rules.

Nothing here differentiates anything. The engine applies rules; the chapters in `fbp.rules` are made of them.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.core
import jax.extend.core
import jax.numpy as jnp
from jax.experimental.hijax import HiType
from jax.extend.core import Primitive, jaxprs_in_params
from jax.extend.source_info_util import SourceInfo, summarize
from jax.interpreters import ad, batching, mlir


class Site(NamedTuple):
    """Where a rule is applied: everything that is known before any value is. Static under `jit`.

    primitive: the operation.
    needs: for each input, whether it wants a cotangent. A rule saves no residual that only an unwanted one would read.
    avals: shape and dtype of each input. Free to keep, so never a residual.
    out_avals: shape and dtype of each output, once the rule's fwd has given them.
    path: the name stack, "encoder/layer_3", as `jax.named_scope` and Flax modules write it. Inside a jitted
        function or a loop it is relative to that: it is traced once for all its calls.
    source: the line of the user's program.
    vjp: `vjp(fun, needs, *xs) -> ys, pullback` differentiates an inner function with the rulebook in force. The ys are
        flat, each an array or `Stopped`; the pullback takes a cotangent for each y (None is zero) and returns one for
        each x. Being a pytree of residuals, it may itself be saved as a rule's residuals. `vjp.with_rules({...})` does
        so with other rules, and `vjp.in_loop()` is for the body of a loop. `held=` says which of the xs, and then of the ys, are
        kept anyway.
    """

    primitive: Primitive
    needs: tuple[bool, ...]
    avals: tuple[jax.core.ShapedArray, ...]
    path: str
    source: SourceInfo
    vjp: Callable
    out_avals: tuple[jax.core.ShapedArray, ...] = ()

    def __str__(self) -> str:
        """'sort' at decoder/attn (model.py:31)"""
        path = f" at {self.path}" if self.path else ""
        line = summarize(self.source)  # empty where JAX has not noted the user's line
        return f"'{self.primitive}'{path}" + (f" ({line})" if line else "")


class Stopped(NamedTuple):
    """An output of a rule's fwd through which no cotangent flows back, as behind `stop_gradient`."""

    value: Any


def value(y: Any) -> Any:
    """The output itself, whether or not a cotangent flows through it."""
    return y.value if isinstance(y, Stopped) else y


class Patch(NamedTuple):
    """A cotangent of this type that is zero but in one place: `add_to(x_bar)` is x_bar and it.

    A rule may give it where a whole array of zeros would be made for the little that is in it: where something is read from
    a large array in every step of a loop, the loop would be quadratic."""

    aval: jax.core.ShapedArray
    add_to: Callable[[jax.Array], jax.Array]


def whole(x_bar: Any) -> Any:
    """The cotangent as an array, if it is a patch."""
    return x_bar.add_to(zeros(x_bar.aval)) if isinstance(x_bar, Patch) else x_bar


class Rule(NamedTuple):
    """How to run one operation and how to reverse it.

    fwd: (site, *xs, **params) -> ys, residuals.  ys is one array, or a list of them for a primitive with several
        results; each may be `Stopped`. Residuals are any pytree of arrays.
    bwd: (site, residuals, *y_bars, **params) -> x_bars, one for each input, of its shape and dtype.
        None is the zero cotangent, in both directions. An x_bar may be a `Patch`.
    inside: (**params) -> a function of the xs, or None. Where it gives one, the operation is no more than a name for what
        that function does: in a program that is staged, as under `jit`, its operations are recorded in its place.
    again: (site, xs, ys, **params) -> the first of its results, from the xs and the other results, the ys: for one that, given
        those, is as soon computed again as kept (see `fbp.recompute`).

    A rule need not know about needs, sharing or transformations: forward and reverse are ordinary JAX code, and the
    engine drops what nobody asked for.
    """

    fwd: Callable
    bwd: Callable
    inside: Callable[..., Callable | None] = lambda **params: None
    again: Callable | None = None


class Rulebook(Mapping[Primitive, Rule]):
    """An immutable mapping from primitives to rules. `RULES | {lax.tanh_p: my_rule}` is a new one.

    `otherwise(primitive)` gives the rule, or None, of a primitive that is not in the book. `cheap` are primitives that,
    with the rules they have here, are as soon run again as their results are kept (see `fbp.recompute`)."""

    def __init__(
        self,
        rules: Mapping[Primitive, Rule],
        otherwise: Callable[[Primitive], Rule | None] | None = None,
        cheap: Mapping[Primitive, Rule | None] = MappingProxyType({}),
    ):
        for primitive, rule in rules.items():
            if not isinstance(primitive, Primitive) or not isinstance(rule, Rule):
                raise TypeError(
                    f"a rulebook maps primitives to rules, but got {primitive!r}: {rule!r}. Keys are primitives such as "
                    "jax.lax.tanh_p; values are fbp.Rule(fwd, bwd) or fbp.table(...)."
                )
        self._rules = MappingProxyType(dict(rules))
        self._otherwise = otherwise
        self._cheap = MappingProxyType(dict(cheap))
        self._run_again = frozenset(p for p, rule in cheap.items() if self._rules.get(p) is rule)
        self._hash = hash((frozenset(self._rules.items()), otherwise, self._run_again))

    def find(self, primitive: Primitive) -> Rule | None:
        """The rule in the book, or an op's own, or the one of `otherwise`."""
        rule = primitive.rule_in(self._rules) if isinstance(primitive, Op) else self._rules.get(primitive)
        return rule if rule is not None or self._otherwise is None else self._otherwise(primitive)

    @property
    def recomputes(self) -> bool:
        """Whether anything is run again."""
        return bool(self._run_again)

    def is_cheap(self, primitive: Primitive, inner: Iterable[jax.extend.core.Jaxpr]) -> bool:
        """Whether an operation is to be run again rather than its results be kept. A call is as cheap as what is inside."""
        return primitive in self._run_again and all(_all_in(self._run_again, jaxpr) for jaxpr in inner)

    def recomputing(self, cheap: Iterable[Primitive]) -> Rulebook:
        """The same rules, where these primitives are cheap, and no others: with none, what the rules read is kept.

        A rule that replaces one of theirs is not run again: nothing is known of what it does.

        >>> import fbp
        >>> x = jax.ShapeDtypeStruct((1000,), jax.numpy.float32)
        >>> kept = lambda rules: jax.eval_shape(lambda x: fbp.vjp(lambda x: jax.lax.sin(-jax.lax.tanh(x)), x, rules=rules)[1], x)
        >>> len(jax.tree.leaves(kept(fbp.RULES))), len(jax.tree.leaves(kept(fbp.RULES.recomputing([]))))
        (1, 2)
        """
        return Rulebook(self._rules, self._otherwise, {primitive: self._rules.get(primitive) for primitive in cheap})

    def __getitem__(self, primitive: Primitive) -> Rule:
        return self._rules[primitive]

    def __iter__(self) -> Iterator[Primitive]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __or__(self, other: Mapping[Primitive, Rule]) -> Rulebook:
        return Rulebook({**self, **other}, self._otherwise, self._cheap)

    # Equal contents are equal books: `RULES | {...}` written inside a training step must find what was traced before.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rulebook) and self._parts() == other._parts()

    def _parts(self):
        return self._rules, self._otherwise, self._run_again

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Rulebook of {len(self)} rules"


@functools.lru_cache(maxsize=4096)
def _all_in(primitives: frozenset[Primitive], jaxpr: jax.extend.core.Jaxpr) -> bool:
    def is_cheap(eqn):
        inner = list(jaxprs_in_params(eqn.params))
        if inner or eqn.primitive not in primitives:
            return eqn.primitive in primitives and all(_all_in(primitives, jaxpr) for jaxpr in inner)
        constant = [isinstance(v, jax.extend.core.Literal) for v in eqn.invars]
        return not jumps([v.aval for v in eqn.invars], constant, [v.aval for v in eqn.outvars])

    return all(map(is_cheap, jaxpr.eqns))


def elements(x: Any) -> int:
    """How many numbers are in x. A dimension that has no number yet (`jax.export.symbolic_shape`) counts as 128."""
    return math.prod(n if isinstance(n, int) else 128 for n in x.shape) if hasattr(x, "shape") else 0


def jumps(read: Sequence[Any], constant: Sequence[bool], given: Sequence[Any]) -> bool:
    """Whether a rounding error of what an operation reads may change what it gives altogether: of floating numbers it gives
    others than such, as `x >= max(x)` does. Computed again, in another place of the program, a value may be rounded
    otherwise. Not so `x > 0`, with a constant: where x is 0 but for rounding, the one is as right as the other."""
    compares = any(constant) and all(getattr(y, "dtype", None) == jax.numpy.bool_ for y in given)
    return any(map(is_inexact, read)) and not all(map(is_inexact, given)) and not compares


_INPUTS = {name: i for i, name in enumerate("abcdef")} | {"x": 0, "w": 1}


def table(*columns: Callable | None, fwd: Callable | None = None) -> Rule:
    """A rule with one line per input, for an operation of one output whose cotangents share no work.

    Each column gives the cotangent of one input. Its first parameter is the cotangent of the output, and the others say
    by their names what it reads: `a`, `b`, `c`, ... (or `x`, `w` for the first two) are the inputs, `y` the output;
    these are the residuals, kept only where the column's input wants a cotangent. Parameters after `*` are the primitive's
    parameters, or `site`; one with a default may be absent. None stands for an input without cotangent.

        tanh_p: table(lambda g, y: g * (1 - y * y))
        mul_p:  table(lambda g, b: g * b,
                      lambda g, a: g * a)

    An input that was broadcast (a scalar against an array) gets the sum over its copies. `fwd(*xs, **params)` computes
    the output, by default the primitive itself.

    >>> import fbp, jax
    >>> steep_tanh = fbp.table(lambda g, y: 2 * g * (1 - y * y))
    >>> float(fbp.grad(jax.numpy.tanh, rules=fbp.RULES | {jax.lax.tanh_p: steep_tanh})(0.0))
    2.0
    """
    reads = [_reads(column) for column in columns]

    def forward(site, *xs, **params):
        y = site.primitive.bind(*xs, **params) if fwd is None else fwd(*xs, **params)
        if isinstance(y, list):  # of an op
            (y,) = y
        wanted = {name for needed, (names, _) in zip(site.needs, reads, strict=True) if needed for name in names}
        return y, {name: y if name == "y" else xs[_INPUTS[name]] for name in wanted}

    def backward(site, residuals, g, **params):
        known = params | {"site": site}
        return [
            unbroadcast(
                column(g, *(residuals[n] for n in names), **{k: known[k] for k in keywords if k in known}), aval
            )
            if needed and column is not None
            else None
            for needed, column, (names, keywords), aval in zip(site.needs, columns, reads, site.avals, strict=True)
        ]

    return Rule(forward, backward)


def _reads(column: Callable | None) -> tuple[list[str], list[str]]:
    """The residuals and the keywords that a column of a table names."""
    if column is None:
        return [], []
    parameters = list(inspect.signature(column).parameters.values())
    names = [p.name for p in parameters[1:] if p.kind is not p.KEYWORD_ONLY]
    if unknown := [name for name in names if name != "y" and name not in _INPUTS]:
        raise TypeError(
            f"a table's column reads {unknown}, but the residuals are called {', '.join(_INPUTS)} (inputs) and y "
            "(output). Parameters of the primitive come after a `*`."
        )
    return names, [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


class Op(Primitive):
    """A function that may have a rule of its own; made by `fbp.op`."""

    multiple_results = True

    def __init__(self, fun: Callable[..., Any], rule: Rule | None):
        super().__init__(fun.__name__)
        functools.update_wrapper(self, fun)

        # Jitted, so that forty-eight equal layers are traced once.
        @functools.lru_cache(maxsize=4096)
        def staged(params):
            return jax.jit(functools.wraps(fun)(lambda *xs: jax.tree.leaves(fun(*xs, **dict(params)))))

        def flat(*xs, **params):
            return staged(tuple(params.items()))(*xs)

        def batch(xs, axes, **params):
            ys = _mapped(self, tuple(axes)).bind(*xs, **params)
            return ys, [0] * len(ys)

        def jvp(xs, tangents, **params):
            return jax.jvp(functools.partial(flat, **params), xs, tuple(map(ad.instantiate_zeros, tangents)))

        self.call, self.fun, self.rule = fun, flat, rule
        self.def_impl(flat)
        self.def_abstract_eval(lambda *avals, **params: staged(tuple(params.items())).trace(*avals).jaxpr.out_avals)
        mlir.register_lowering(self, mlir.lower_fun(flat, multiple_results=True))
        batching.primitive_batchers[self] = batch
        ad.primitive_jvps[self] = jvp

    def __call__(self, *xs: Any, **params: Any) -> Any:
        tree = jax.tree.structure(jax.eval_shape(functools.partial(self.call, **params), *xs))
        return jax.tree.unflatten(tree, self.bind(*map(jnp.asarray, xs), **params))

    def rule_in(self, rules: Mapping[Primitive, Rule]) -> Rule | None:
        """The rule for this op in a rulebook; where there is none, its own."""
        return rules.get(self, self.rule)


class _MappedOp(Op):
    """An op under `jax.vmap`: still an op, whose rule is the op's, mapped."""

    def __init__(self, op: Op, axes: tuple[int | None, ...]):
        def fun(*xs, **params):
            return jax.vmap(functools.partial(op.fun, **params), axes)(*xs)

        fun.__name__ = f"vmap_{op.name}"
        super().__init__(fun, None)
        self.op, self.axes = op, axes

    def rule_in(self, rules: Mapping[Primitive, Rule]) -> Rule | None:
        rule = self.op.rule_in(rules)
        return rule and _mapped_rule(rule, self.op, self.axes)


_mapped = functools.lru_cache(maxsize=4096)(_MappedOp)


@functools.lru_cache(maxsize=4096)
def _mapped_rule(rule: Rule, op: Op, axes: tuple[int | None, ...]) -> Rule:
    """y_i = f(x_i)  =>  x_bar_i = the rule's; an input that all share gets the sum."""

    def single(site: Site) -> Site:
        avals = [
            aval if axis is None else aval.update(shape=(*aval.shape[:axis], *aval.shape[axis + 1 :]), sharding=None)
            for aval, axis in zip(site.avals, axes, strict=True)
        ]
        out_avals = [aval.update(shape=aval.shape[1:], sharding=None) for aval in site.out_avals]
        return site._replace(primitive=op, avals=tuple(avals), out_avals=tuple(out_avals))

    def forward(site, *xs, **params):
        return jax.vmap(functools.partial(rule.fwd, single(site), **params), axes)(*xs)

    def backward(site, residuals, *y_bars, **params):
        one = functools.partial(rule.bwd, single(site), **params)
        x_bars = jax.vmap(lambda residuals, y_bars: one(residuals, *y_bars))(residuals, y_bars)
        return [
            x_bar if x_bar is None else jnp.sum(x_bar, 0) if axis is None else jnp.moveaxis(x_bar, 0, axis)
            for x_bar, axis in zip(x_bars, axes, strict=True)
        ]

    return Rule(forward, backward)


def op(fun: Callable[..., Any] | None = None, *, rule: Rule | None = None) -> Any:
    """Makes a function of arrays one operation, with a rule of its own: where it is met, fbp applies the rule.

    Everyone else sees the code inside: `jit`, `jvp`, `jax.grad`, and fbp itself where neither the rulebook nor `rule`
    has a rule for it. A rulebook's entry goes before `rule`. Under `vmap` it is mapped, and so is its rule.
    `fun(*arrays, **static) -> array or pytree of arrays`: keyword arguments are static, hence hashable, and are the
    `**params` of the rule, whose `fwd` gives the results as a list.
    A function among them must not close over traced values, which is an error: stage it (`fbp.rules.staging.stage`), and
    what it closes over are further arrays, as in `fbp.ops.stack`.

    >>> import fbp, jax.numpy as jnp
    >>> straight_through = fbp.Rule(lambda site, x: ([jnp.tanh(x)], ()), lambda site, _, g: [g])
    >>> @fbp.op
    ... def squash(x):
    ...     return jnp.tanh(x)
    >>> float(fbp.grad(squash)(0.0)), float(fbp.grad(squash, rules=fbp.RULES | {squash: straight_through})(3.0))
    (1.0, 1.0)
    >>> @fbp.op(rule=straight_through)
    ... def squash(x):
    ...     return jnp.tanh(x)
    >>> float(fbp.grad(squash)(3.0))
    1.0
    """
    return functools.partial(Op, rule=rule) if fun is None else Op(fun, rule)


def unbroadcast(x_bar: jax.Array | None, aval: jax.core.ShapedArray) -> jax.Array | None:
    """Sums a cotangent over the axes along which its input was repeated. y = broadcast x  =>  x_bar = sum of y_bar.

    Over all axes of length one: where others are summed, YNNPACK takes ten times as long if it has to keep one (jax 0.10)."""
    if x_bar is None or x_bar.shape == aval.shape:
        return x_bar
    if not aval.shape:
        return jnp.sum(x_bar, dtype=aval.dtype)
    axes = tuple(i for i, n in enumerate(aval.shape) if n == 1)
    return jnp.sum(x_bar, axes, keepdims=True, dtype=aval.dtype)


def is_inexact(aval: Any) -> bool:
    """Whether cotangents of this type exist: real and complex arrays have them, integers, booleans and keys do not. A type
    of `jax.experimental.hijax` has them if it says what its tangents are."""
    if isinstance(aval, HiType):
        if type(aval).to_tangent_aval is HiType.to_tangent_aval:
            return False
        aval = aval.to_tangent_aval()
    return isinstance(aval, HiType) or (
        isinstance(aval, jax.core.ShapedArray) and jnp.issubdtype(aval.dtype, jnp.inexact)
    )


def blank(aval: Any) -> Any:
    """An array of zeros of this type: weakly typed, sharded, and varying over the devices of a `shard_map`, as it is."""
    mesh = aval.sharding.mesh if isinstance(aval, jax.core.ShapedArray) else None
    if mesh is not None and not mesh.explicit_axes and not mesh.manual_axes:
        aval = aval.update(sharding=None)  # that of an array from outside is not of the mesh inside of a shard_map
    return ad.zeros_like_aval(aval)


def zeros(aval: Any) -> Any:
    """The zero cotangent of a type, written out; of dtype float0 for integers."""
    return blank(aval.to_ct_aval())


def zero_tangent(aval: Any) -> Any:
    """The zero tangent of a type, written out. It differs where a value is unreduced: its cotangent is reduced."""
    return blank(aval.to_tangent_aval())
