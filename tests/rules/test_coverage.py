"""Every primitive that JAX differentiates has a rule, or a reason, here, why it has none."""

import subprocess
import sys

from jax.extend.core.primitives import closed_call_p

import fbp

REASONS = {
    "the engine carries it out: it reads and writes what is in a mutable reference": [
        "new_ref", "get", "swap", "addupdate", "freeze", "empty_ref", "free_ref",
    ],
    "JAX's own reverse mode fails for it, or refuses it": [
        "composite", "custom_vmap_call", "ffi_call", "reduce_window",
    ],
    "it has no result that could have a cotangent": [
        "check", "dce_sink", "debug_callback", "debug_print", "inspect_sharding", "cond_dce_sink",
    ],
    "a program never holds it: JAX stages it as another, or uses it inside of its own transformations": [
        "eval_jaxpr", "call", "custom_lin", "stage", "tie", "remat_opt", "run_state", "accum_grad_in_ref",
        "call_hi_primitive_linearized",
    ],
    "it works on the bits of an extended dtype, such as a random key": ["from_edtype", "to_edtype"],
    "it marks the argument of a Pallas kernel, which JAX does not differentiate in reverse": ["with_memory_space_constraint"],
    "not yet: the explicit layouts of jax 0.12": ["relayout"],
    "not yet: it cannot be run on a CPU, where rules are proved": ["ragged_all_to_all", "pbroadcast", "pbroadcast_dynamic"],
    "not yet: mutable containers of jax.experimental.hijax": [
        "new_box", "box_get", "box_set", "new_log", "log_extend", "log_read",
    ],
}  # fmt: skip


# In a process of its own, where no other test has made a primitive.
PROGRAM = """
import jax.experimental.checkify, jax.experimental.hijax, jax.experimental.ode, jax.experimental.sparse
from jax.extend.core import Primitive, primitives
from jax.interpreters import ad

import fbp

listed = {p for p in vars(primitives).values() if isinstance(p, Primitive)}
for primitive in {*listed, *ad.primitive_jvps, *ad.primitive_transposes}:
    jvp = ad.primitive_jvps.get(primitive)
    is_zero = getattr(getattr(jvp, "func", jvp), "__name__", "") == "zero_jvp"
    if fbp.RULES.find(primitive) is None and ((jvp and not is_zero) or primitive in ad.primitive_transposes):
        print(str(primitive).removesuffix("_p"))
"""


def test_every_primitive_that_jax_differentiates_has_a_rule_or_a_reason():
    without_rule = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"composite", "check"} <= set(without_rule)
    assert sorted(set(without_rule) - {name for names in REASONS.values() for name in names}) == []


def test_what_has_a_rule_has_no_reason_not_to_have_one():
    rules = {str(p) for p in fbp.RULES if p is not closed_call_p}  # which jax 0.12 calls eval_jaxpr
    assert not rules & {name for names in REASONS.values() for name in names}
