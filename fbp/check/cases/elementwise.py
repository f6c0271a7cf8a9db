"""Cases for `fbp.rules.elementwise`."""

from jax import lax

from fbp.check.case import Case, normal

CASES = [
    Case("neg", lax.neg, (normal(3, 4),), complex=True),
    Case("add", lax.add, (normal(3, 4), normal(3, 4)), complex=True),
    Case("sub", lax.sub, (normal(3, 4), normal(3, 4)), complex=True),
    Case("mul", lax.mul, (normal(3, 4), normal(3, 4)), complex=True),
    Case("mul/scalar", lambda x: 2.0 * x, (normal(3, 4),), complex=True),
    Case("tanh", lax.tanh, (normal(3, 4),), complex=True),
]
