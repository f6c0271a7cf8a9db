"""Everything in which JAX versions differ, or which JAX does not make public. Nothing else in fbp looks inside `jax._src`.

Covers jax 0.10 to 0.12.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.core
from jax._src import traceback_util
from jax.extend import source_info_util
from jax.extend.core import jaxpr_as_fun, primitives
from jax.interpreters.ad import Zero

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


def is_saveable(policy: Callable | None, eqn: Any) -> bool:
    """Whether a policy of `jax.checkpoint` has the results of an equation saved. (Or offloaded: they are saved, too.)"""
    if policy is None:
        return False
    answer = policy(eqn.primitive, *(v.aval for v in eqn.invars), **eqn.params)
    return answer if isinstance(answer, bool) else type(answer).__name__ in ("SaveableType", "Offloadable")


def _primitive_of(fun: Callable, *xs: Any) -> Any:
    return jax.make_jaxpr(fun)(*xs).eqns[-1].primitive


# Differentiable primitives that jax.extend.core.primitives does not list.
optimization_barrier_p = _primitive_of(jax.lax.optimization_barrier, 0.0)


def where_known(rules: dict[str, Any]) -> dict[Any, Any]:
    """The rules, by name, of primitives that this version of JAX has."""
    return {getattr(primitives, name): rule for name, rule in rules.items() if hasattr(primitives, name)}
