"""Cases for `fbp.rules.indexing`."""

import jax
import jax.numpy as jnp
from jax import lax

from fbp.check.case import Case, distinct, fixed, integers, normal

I = fixed([0, 2, 0, 4])
OUT = fixed([-7, 1, 9])

CASES = [
    Case("dynamic_slice/start before the first", lambda x: lax.dynamic_index_in_dim(x, -8), (normal(5, 3),)),
    Case(
        "dynamic_update_slice/start before the first",
        lambda x, u: lax.dynamic_update_index_in_dim(x, u, -8, 0),
        (normal(5, 3), normal(1, 3)),
    ),
    Case(
        "dynamic_slice",
        lambda x, i: lax.dynamic_slice(x, (i, jnp.ones_like(i)), (2, 2)),
        (normal(4, 3), integers(0, 4)),
    ),
    Case(
        "dynamic_update_slice",
        lambda x, u, i: lax.dynamic_update_slice(x, u, (i, jnp.zeros_like(i))),
        (normal(4, 3), normal(2, 2), integers(0, 4)),
        complex=True,
    ),
    Case("gather", lambda x, i: x[i], (normal(5, 3), I), complex=True),
    Case("gather/two", lambda x, i: x[i, i % 3], (normal(5, 3), I)),
    Case("gather/slice", lambda x, i: x[:, i], (normal(2, 5), I)),
    *[
        Case(f"gather/{mode}", lambda x, i, mode=mode: x.at[i].get(mode=mode, fill_value=7.0) * 2, (normal(5, 3), OUT))
        for mode in ("clip", "fill")
    ],
    Case("take_along_axis", lambda x, i: jnp.take_along_axis(x, i, 1), (normal(3, 4), integers(0, 4, 3, 2))),
    Case("gather/batched", jax.vmap(lambda x, i: x[i]), (normal(3, 5), integers(0, 5, 3, 2))),
    *[
        Case(
            f"scatter_add/{mode}",
            lambda x, i, u, mode=mode: x.at[i].add(u, mode=mode),
            (normal(5, 3), OUT, normal(3, 3)),
        )
        for mode in ("clip", "drop")
    ],
    Case("scatter_add", lambda x, i, u: x.at[i].add(u), (normal(5, 3), I, normal(4, 3)), complex=True),
    Case("scatter_sub", lambda x, i, u: x.at[i].subtract(u), (normal(5, 3), I, normal(4, 3)), complex=True),
    Case("scatter_add/window", lambda x, u: x.at[1:3].add(u), (normal(5, 3), normal(2, 3))),
    Case("scatter", lambda x, i, u: x.at[i].set(u), (normal(5, 3), I, normal(4, 3)), complex=True),
    Case("scatter/unique", lambda x, u: x.at[jnp.array([3, 1])].set(u, unique_indices=True), (normal(5), normal(2))),
    Case("scatter/drop", lambda x, i, u: x.at[i].set(u, mode="drop"), (normal(5, 3), OUT, normal(3, 3))),
    Case("scatter/scalar", lambda x, u: x.at[1, 2].set(u), (normal(2, 3), normal())),
    Case("scatter/slice", lambda x, u: x.at[::2].set(u), (normal(5, 3), normal(3, 3))),
    Case(
        "scatter/batched", jax.vmap(lambda x, i, u: x.at[i].set(u)), (normal(3, 5), integers(0, 5, 3, 2), normal(3, 2))
    ),
    Case("scatter_mul", lambda x, u: x.at[jnp.array([3, 1])].mul(u, unique_indices=True), (normal(5), normal(2))),
    Case("scatter_mul/operand", lambda x, i: x.at[i].mul(2.0), (normal(5), I)),
    Case("scatter_max", lambda x, i, u: x.at[i].max(u), (distinct(5), I, normal(4))),
    Case("scatter_min", lambda x, i, u: x.at[i].min(u), (distinct(5), I, normal(4))),
    Case(
        "scatter_max/ties",
        lambda x, i, u: x.at[i].max(u),
        (fixed([1.0, 2.0, 3.0]), fixed([0, 0, 2]), fixed([5.0, 5.0, 3.0])),
    ),
    Case("embedding", lambda w, i: jnp.take(w, i, axis=0), (normal(6, 3), integers(0, 6, 2, 4))),
]
