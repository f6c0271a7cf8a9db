"""Mutable references (`jax.new_ref`) of a differentiated function: no rule knows of them.

An operation on references is turned into a pure function of what is in them, which gives what is in them next, and that
function is recorded:

    ref[i] = x    =>    contents = contents with x at i
    y = ref[i]    =>    y = contents at i
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend.core import Primitive, set_current_trace

from fbp import _compat
from fbp.core import zero_tangent


class Reference(jax.core.Tracer):
    """A mutable array (`jax.new_ref`) of the user's function: what is in it, replaced by each operation that writes."""

    __slots__ = ("contents",)

    def __init__(self, trace: jax.core.Trace, aval: Any, contents: Any):
        super().__init__(trace, aval)
        self.contents = contents

    def _short_repr(self):
        return f"Reference({self.contents})"


def is_of(trace: jax.core.Trace, x: Any) -> bool:
    return isinstance(x, Reference) and x._trace is trace


def makes_one(primitive: Primitive) -> bool:
    return primitive is _compat.new_ref_p or primitive is _compat.empty_ref_p


def make(trace: jax.core.Trace, primitive: Primitive, args: Sequence[Any], params: dict[str, Any]) -> Reference:
    """A new reference to the argument, or to nothing yet."""
    aval = primitive.abstract_eval(*map(jax.typeof, args), **params)[0]
    with set_current_trace(trace):
        return Reference(trace, aval, *(args or [zero_tangent(aval.inner_aval)]))


def apply(trace: jax.core.Trace, primitive: Primitive, args: Sequence[Any], bind_params: dict[str, Any]) -> Any:
    """Runs an operation, some of whose arguments are references of this trace, and replaces what is in those."""
    if primitive is _compat.freeze_p:
        return args[0].contents
    if primitive is _compat.free_ref_p:
        return []
    references = {id(x): x for x in args if is_of(trace, x)}
    form = []

    def operation(contents, others):
        inner = {key: jax.new_ref(x) for key, x in contents.items()}
        ys = primitive.bind(*(inner[id(x)] if id(x) in inner else others[i] for i, x in enumerate(args)), **bind_params)
        form.append(jax.tree.structure(ys))
        return {key: jax.freeze(ref) for key, ref in inner.items()}, jax.tree.leaves(ys)

    contents = {key: x.contents for key, x in references.items()}
    with set_current_trace(trace):
        others = {i: jnp.asarray(x) for i, x in enumerate(args) if id(x) not in references}
    inputs = contents, others
    staged = jax.make_jaxpr(operation)(*jax.tree.map(jax.typeof, inputs))
    with set_current_trace(trace):
        outputs = _compat.discharged(staged)(*jax.tree.leaves(inputs))
    for key, x in zip(sorted(references), outputs, strict=False):
        references[key].contents = x
    return jax.tree.unflatten(form[0], outputs[len(references) :])
