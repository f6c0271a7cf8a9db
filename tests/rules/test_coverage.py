"""Every primitive that JAX differentiates has a rule, or a reason, here, why it has none."""

from jax.extend.core import Primitive, primitives
from jax.interpreters import ad

import fbp
from fbp.core import Op

REASONS = {
    "the engine carries it out: it reads and writes what is in a mutable reference": [
        "new_ref", "get", "swap", "addupdate", "freeze", "empty_ref", "free_ref",
    ],
    "JAX's own reverse mode fails for it, or refuses it": [
        "composite", "custom_vmap_call", "ffi_call", "reduce_window", "pbroadcast",
    ],
    "it has no result that could have a cotangent": [
        "check", "dce_sink", "debug_callback", "debug_print", "inspect_sharding", "cond_dce_sink",
    ],
    "a program never holds it: JAX stages it as another, or uses it inside of its own transformations": [
        "eval_jaxpr", "call", "custom_lin", "stage", "tie", "remat_opt", "run_state", "accum_grad_in_ref",
        "call_hi_primitive_linearized",
    ],
    "it works on the bits of an extended dtype, such as a random key": ["from_edtype", "to_edtype"],
    "not yet: it cannot be run on a CPU, where rules are proved": ["ragged_all_to_all"],
    "not yet: mutable containers of jax.experimental.hijax": [
        "new_box", "box_get", "box_set", "new_log", "log_extend", "log_read",
    ],
    "not yet: the unreduced values of explicit sharding": [
        "all_gather_reduced", "preduced", "reduced_vary_cast_p", "unreduced_psum", "unreduced_reduce_scatter",
        "vary_unreduced_cast_p",
    ],
}  # fmt: skip


def differentiated_by_jax():
    """Names of primitives with a tangent map, other than zero, or a transpose."""
    listed = {p for p in vars(primitives).values() if isinstance(p, Primitive)}
    for primitive in {*listed, *ad.primitive_jvps, *ad.primitive_transposes}:
        if isinstance(primitive, Op) or fbp.RULES.find(primitive) is not None:
            continue
        jvp = ad.primitive_jvps.get(primitive)
        is_zero = getattr(getattr(jvp, "func", jvp), "__name__", "") == "zero_jvp"
        if (jvp and not is_zero) or primitive in ad.primitive_transposes:
            yield str(primitive)


def test_every_primitive_that_jax_differentiates_has_a_rule_or_a_reason():
    assert not set(differentiated_by_jax()) - {name for names in REASONS.values() for name in names}


def test_what_has_a_rule_has_no_reason_not_to_have_one():
    assert not {str(p) for p in fbp.RULES} & {name for names in REASONS.values() for name in names}
