"""Cases for `fbp.rules.shapes`."""

import jax.numpy as jnp
from jax import lax

from fbp.check.case import Case, normal

X = (normal(2, 3),)

CASES = [
    Case("reshape", lambda x: lax.reshape(x, (3, 2)), X, complex=True),
    Case("reshape/order", lambda x: lax.reshape(x, (6,), dimensions=(1, 0)), X),
    Case("squeeze", lambda x: lax.squeeze(x, (1,)), (normal(2, 1, 3),)),
    Case("transpose", lambda x: lax.transpose(x, (2, 0, 1)), (normal(2, 3, 4),), complex=True),
    Case("rev", lambda x: lax.rev(x, (1,)), X),
    Case("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (4, 2, 3), (1, 2)), X, complex=True),
    Case("broadcast_in_dim/ones", lambda x: lax.broadcast_in_dim(x, (4, 2, 3), (0, 2)), (normal(1, 3),)),
    Case("broadcast_in_dim/scalar", lambda x: lax.broadcast_in_dim(x, (2,), ()), (normal(),)),
    Case("slice", lambda x: lax.slice(x, (1, 0), (4, 2)), (normal(5, 3),)),
    Case("slice/strided", lambda x: lax.slice(x, (1, 0), (6, 3), (2, 2)), (normal(7, 3),), complex=True),
    Case("slice/empty", lambda x: lax.slice(x, (1, 0), (1, 3), (2, 1)), X),
    Case("pad", lambda x, v: lax.pad(x, v, ((1, 2, 0), (0, 0, 1))), (normal(2, 3), normal()), complex=True),
    Case("pad/negative", lambda x, v: lax.pad(x, v, ((-1, 1, 2), (1, -2, 0))), (normal(3, 4), normal())),
    Case("concatenate", lambda *xs: lax.concatenate(xs, 1), (normal(2, 1), normal(2, 3), normal(2, 2)), complex=True),
    Case("concatenate/empty", lambda *xs: lax.concatenate(xs, 0), (normal(0, 2), normal(3, 2))),
    Case("split", lambda x: lax.split(x, (1, 3), axis=1)[1], (normal(2, 4),)),
    Case("split/all", lambda x: lax.split(x, (1, 3), axis=1), (normal(2, 4),)),
    Case("stack", lambda *xs: jnp.stack(xs, 1), (normal(2, 3), normal(2, 3))),
    Case("unstack", lambda x: jnp.unstack(x, axis=1)[1:], (normal(2, 3),)),
    Case("tile", lambda x: jnp.tile(x, (2, 3)), X, complex=True),
    Case("repeat", lambda x: jnp.repeat(x, 3, axis=1), X),
    Case("roll", lambda x: jnp.roll(x, 1, axis=1), X),
]
