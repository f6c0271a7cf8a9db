"""Everything in which JAX versions differ, or which JAX does not make public. Nothing else in fbp looks inside `jax._src`.

Covers jax 0.10 to 0.12.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.core
from jax._src import callback, core, custom_derivatives, hijax, pjit, shard_map, traceback_util, tree_util
from jax._src.api import DidntWant as DidntWant
from jax._src.api import DontWant as DontWant
from jax._src.api import GradRef as GradRef
from jax._src.api import GradValue as GradValue
from jax._src.interpreters.ad import NullAccum as NullAccum
from jax._src.interpreters.ad import ValAccum as ValAccum
from jax._src.lax import lax as lax_internal
from jax._src.lax import parallel
from jax._src.state import AbstractRef, discharge
from jax.extend import source_info_util
from jax.extend.core import jaxpr_as_fun, primitives
from jax.interpreters.ad import JVPTracer, UndefinedPrimal, Zero

_HERE = str(pathlib.Path(__file__).parent)

# JAX hides its own frames when an error leaves a user's function, and does not call its own lines "the user's".
# fbp asks for the same manners.
traceback_util.register_exclusion(_HERE)
source_info_util.register_exclusion(_HERE)
api_boundary: Callable[[Callable], Callable] = traceback_util.api_boundary


def path(source: source_info_util.SourceInfo) -> str:
    """The name stack as a path, "encoder/layer_3", without the transformations ("jvp", "vmap") JAX notes in it."""
    return "/".join(scope.name for scope in source.name_stack.stack if type(scope).__name__ == "Scope")


def is_internal_zero(x: Any) -> bool:
    """JAX's own symbolic zero, which the bwd of a custom_vjp may return."""
    return isinstance(x, Zero)


def is_internal(fun: Callable) -> bool:
    """Whether a function is one of JAX's own insides."""
    return fun.__module__.startswith("jax._src.")


def internal_zero(aval: Any) -> Any:
    """That zero, for a value of this type."""
    return Zero(aval.to_tangent_aval())


def undefined(aval: Any) -> Any:
    """What stands, in a transpose rule of JAX, for the input whose cotangent is asked for."""
    return UndefinedPrimal(aval)


def has_own_vjp(prim: Any) -> bool:
    """Whether a hi-primitive brings a backward pass of its own, rather than one that JAX derives from its tangent map.
    (Until jax 0.11 nothing was derived.)"""
    derived = [getattr(hijax, name, (None,))[0] for name in ("vjp_from_jvp", "vjp_from_lin")]
    return type(prim).vjp_fwd not in derived


def typed_as(aval: Any, x: Any) -> Any:
    """x in the dtype of a type, and weakly typed if that is."""
    return lax_internal._convert_element_type(x, aval.dtype, aval.weak_type)


def with_tangent(x: Any) -> Any:
    """x as a value of JAX's forward mode that has a tangent."""
    return JVPTracer(None, x, x)


def call_bwd(bwd: Any, *args: Any) -> list[Any]:
    """The cotangents that the bwd of a custom_vjp returns. Since jax 0.12, in a pair with what the user logs there."""
    outputs = bwd.call_wrapped(*args)
    return outputs[0] if len(outputs) == 2 and isinstance(outputs[0], list) else outputs


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """The number of loop constants and of carries among a scan's inputs. Since jax 0.11, in trees instead of numbers."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(list(consts)), len(list(carry))


def jaxpr_fun(jaxpr: Any) -> Callable[..., list]:
    """The function of a jaxpr, closed or without constants. Since jax 0.11 there is only the closed kind."""
    if hasattr(jaxpr, "consts"):
        return jaxpr_as_fun(jaxpr)
    return lambda *xs: jax.core.eval_jaxpr(jaxpr, (), *xs)


def is_inlined(inline: Any) -> bool:
    """Whether a jitted function is put in the place of its call before XLA sees it. Since jax 0.11 there are five answers."""
    return getattr(inline, "value", inline) in (True, "jax_early", "jax_late")


def jaxpr_in_place(jaxpr: Any) -> Callable[..., list]:
    """The same for a closed one, where all that it does counts as of the line that calls it."""
    open_jaxpr, consts = getattr(jaxpr, "jaxpr", jaxpr), jaxpr.consts
    return lambda *xs: jax.core.eval_jaxpr(open_jaxpr, consts, *xs, propagate_source_info=False)


def opened(staged: Any) -> tuple[Any, list]:
    """What `jax.make_jaxpr` gives, as a jaxpr of constants and inputs, and the constants. (Since jax 0.11 a jaxpr has room
    for its constants, which must not be taken along.)"""
    jaxpr = staged.jaxpr
    return (jaxpr.replace(consts=None) if hasattr(jaxpr, "consts") else jaxpr), list(staged.consts)


def discharged(jaxpr: Any) -> Callable[..., list]:
    """The pure function of a jaxpr that makes, reads, writes and freezes mutable references."""
    return jaxpr_fun(discharge.discharge_state(jaxpr))


def tree_differences(tree: Any, other: Any) -> list[tuple[Any, str, str, str]]:
    """Where two tree structures differ: the path, what there is in the one and in the other, and why that is not the same."""
    return list(tree_util.equality_errors_pytreedef(tree, other))


def is_reference(aval: Any) -> bool:
    """Whether a type is that of a mutable reference."""
    return isinstance(aval, AbstractRef)


def takes_no_differentiated_values(aval: Any) -> bool:
    """Whether a type is that of something mutable into which no tangent can go: a reference, but one that is said to be
    none of differentiation's business, or a box (which jax 0.10 has)."""
    return getattr(aval, "has_qdd", False) or (is_reference(aval) and aval.kind != "no_grad_no_remat")


def contents_of_box(trace: Any, x: Any) -> Any:
    """The types of what is now in a mutable box (`jax.experimental.hijax`), as `trace` knows it."""
    with core.set_current_trace(trace):
        return core.cur_qdd(x)


def is_saveable(policy: Callable | None, eqn: Any) -> bool:
    """Whether a policy of `jax.checkpoint` has the results of an equation saved. (Or offloaded: they are saved, too.)"""
    if policy is None:
        return False
    answer = policy(eqn.primitive, *(v.aval for v in eqn.invars), **eqn.params)
    return answer if isinstance(answer, bool) else type(answer).__name__ in ("SaveableType", "Offloadable")


def varying_axes(aval: Any) -> frozenset:
    """The mesh axes along which a value differs from device to device, as far as shard_map keeps account of them."""
    return aval.manual_axis_type.varying


def reduction(aval: Any) -> dict[str, frozenset]:
    """The mesh axes along which a value is unreduced, and reduced, in the words of a `PartitionSpec`."""
    return {"unreduced": aval.manual_axis_type.unreduced, "reduced": aval.manual_axis_type.reduced}


def axes_of_vmaps() -> frozenset:
    """The mesh axes that the `vmap`s we are in spread their examples along (`spmd_axis_name`)."""
    return core.get_axis_env().spmd_axis_names


def _primitive_of(fun: Callable, *xs: Any) -> Any:
    return jax.make_jaxpr(fun)(*xs).eqns[-1].primitive


# Differentiable primitives that jax.extend.core.primitives does not list.
all_gather_invariant_p = parallel.all_gather_invariant_p
all_gather_reduced_p = parallel.all_gather_reduced_p
call_hi_primitive_p = hijax.call_hi_primitive_p
empty_ref_p = core.empty_ref_p
free_ref_p = core.free_ref_p
freeze_p = core.freeze_p
io_callback_p = callback.io_callback_p
layout_constraint_p = pjit.layout_constraint_p
linear_call_p = custom_derivatives.linear_call_p
new_ref_p = core.ref_p
optimization_barrier_p = _primitive_of(jax.lax.optimization_barrier, 0.0)
psum_invariant_p = parallel.psum_invariant_p
preduced_p = parallel.preduced_p
pure_callback_p = callback.pure_callback_p
pvary_p = core.pvary_p
ragged_dot_general_p = lax_internal.ragged_dot_general_p
reduce_scatter_p = parallel.reduce_scatter_p
reduced_vary_cast_p = core.reduced_vary_cast_p
reshard_p = pjit.reshard_p
shard_map_p = shard_map.shard_map_p
unreduced_psum_p = parallel.unreduced_psum_p
unreduced_reduce_scatter_p = parallel.unreduced_reduce_scatter_p
vary_unreduced_cast_p = parallel.vary_unreduced_cast_p


COMPLEX_SIGN_HAS_DERIVATIVE = hasattr(lax_internal, "_sign_jvp_rule")  # not in 0.10
CONVOLVES_ON_ONE_CORE = jax.__version_info__ < (0, 11)  # XLA on CPUs, where it hands a convolution to YNNPACK
KEEPS_BARRIERS = jax.__version_info__ >= (0, 12)  # XLA, in programs for CPUs (0.11: not measured)
CHOLESKY_READS_A_TRIANGLE = jax.__version_info__ >= (0, 11, 2)  # so that the other one's cotangent is zero


def _program_order() -> Any:
    """That of `jax.experimental.overlap`, which jax 0.10 does not have, and each version since somewhere else."""
    try:
        from jax._src.program_order import program_order_p  # pyright: ignore[reportMissingImports]
    except ImportError:
        return getattr(pjit, "program_order_p", None)
    return program_order_p


def where_known(rules: dict[str, Any]) -> dict[Any, Any]:
    """The rules, by name, of primitives that this version of JAX has."""
    unlisted = {"program_order_p": _program_order()}
    known = {getattr(primitives, name, unlisted.get(name)): rule for name, rule in rules.items()}
    return {primitive: rule for primitive, rule in known.items() if primitive is not None}
