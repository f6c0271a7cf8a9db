"""Cases for `fbp.rules.collectives`. A collective over a mapped axis is the same one as over devices."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core.primitives import psum_p

from fbp.check.case import Case, normal

X = (normal(4, 4),)


def along(fun):
    """`fun`, mapped over the first axis of its arguments, which is called i."""
    return jax.vmap(fun, axis_name="i")


CASES = [
    Case("psum", along(lambda x: jnp.sin(x) * lax.psum(x, "i")), X, complex=True),
    Case("psum/of an axis, too", along(lambda x: psum_p.bind(jnp.sin(x), axes=("i", 0), axis_index_groups=None)), X),
    Case("pmean", along(lambda x: x - lax.pmean(x, "i")), X),
    Case("ppermute", along(lambda x: lax.ppermute(x, "i", [(0, 1), (1, 3), (2, 0), (3, 2)])), X, complex=True),
    Case("all_gather", along(lambda x: jnp.sin(lax.all_gather(x, "i"))), X, complex=True),
    Case("all_gather/tiled", along(lambda x: jnp.sin(lax.all_gather(x, "i", tiled=True))), X),
    Case("all_to_all", along(lambda x: jnp.sin(lax.all_to_all(x, "i", 0, 0))), X),
    Case("all_to_all/tiled", along(lambda x: jnp.sin(lax.all_to_all(x, "i", 0, 1, tiled=True))), (normal(4, 4, 2),)),
    Case("psum_scatter", along(lambda x: lax.psum_scatter(jnp.sin(x), "i")), X),
    Case("psum_scatter/tiled", along(lambda x: lax.psum_scatter(jnp.sin(x), "i", tiled=True)), X),
]
