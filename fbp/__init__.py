"""fbp: functional backpropagation for JAX. A drop-in for `jax.grad` whose backward pass you can read, check and change."""

from fbp.api import as_custom_vjp, grad, hessian, jacrev, value_and_grad, vjp
from fbp.check import check_grads
from fbp.core import Rule, Rulebook, Site, Stopped, op, table
from fbp.rules import RULES
from fbp.rules.bounded import while_loop

__all__ = [
    "RULES",
    "Rule",
    "Rulebook",
    "Site",
    "Stopped",
    "as_custom_vjp",
    "check_grads",
    "grad",
    "hessian",
    "jacrev",
    "op",
    "table",
    "value_and_grad",
    "vjp",
    "while_loop",
]
