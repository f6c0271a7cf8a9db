"""Cases for `fbp.rules.collectives`."""

import functools

import jax.numpy as jnp
from jax import lax
from jax.extend.core.primitives import psum_p
from jax.sharding import PartitionSpec as P

from fbp import _compat
from fbp.check.case import Case, normal
from fbp.check.cases.shard_map import on_devices

ROWS = P("i")


def along(fun, out_spec=ROWS, check_vma=True):
    """`fun`, run on the devices of one axis, i: on each with some rows of x."""
    return on_devices(lambda x: fun(jnp.sin(x)), ROWS, out_spec, check_vma=check_vma)


def around(axis="i"):
    """Each device to the next."""
    n = lax.axis_size(axis)
    return [(i, (i + 1) % n) for i in range(n)]


def all_as_one_group(axis="i"):
    return [list(range(lax.axis_size(axis)))]


def per_row(axis="i"):
    """The rows that make an axis of the number of devices."""
    return slice(0, lax.axis_size(axis))


def gather_invariant(x, tiled):
    """all_gather, with a result that JAX knows to be the same everywhere."""
    options = {"axis_name": ("i",), "axis_size": lax.axis_size("i"), "all_gather_dimension": 0, "tiled": tiled}
    return _compat.all_gather_invariant_p.bind(x, **options)


X = (normal(8, 4),)

# Not in bfloat16, in which the CPU compiler of jax 0.12 aborts at a sum over devices.
Case = functools.partial(Case, low=False)

CASES = [
    Case("psum", along(lambda x: lax.psum(x, "i"), P(), check_vma=False), X, complex=True),
    Case(
        "psum/groups", along(lambda x: x * lax.psum(x, "i", axis_index_groups=all_as_one_group()), check_vma=False), X
    ),
    Case(
        "psum/of rows, too",
        along(lambda x: psum_p.bind(x, axes=("i", 0), axis_index_groups=None), P(), check_vma=False),
        X,
    ),
    Case("pmean", along(lambda x: x - lax.pmean(x, "i")), X),
    Case("ppermute", along(lambda x: x * lax.ppermute(x, "i", around())), X, complex=True),
    Case("ppermute/some", along(lambda x: x * lax.ppermute(x, "i", around()[:1])), X),
    Case("all_to_all", along(lambda x: lax.all_to_all(x[per_row()], "i", 0, 0)), X),
    Case("all_to_all/tiled", along(lambda x: lax.all_to_all(x, "i", 0, 1, tiled=True)), X),
    Case("all_gather", along(lambda x: lax.all_gather(x, "i")), X, complex=True),
    Case("all_gather/tiled", along(lambda x: lax.all_gather(x, "i", axis=1, tiled=True)), X),
    Case("all_gather_invariant", along(lambda x: gather_invariant(x, False), P()), X),
    Case("all_gather_invariant/tiled", along(lambda x: gather_invariant(x, True), P()), X),
    Case("psum_scatter", along(lambda x: lax.psum_scatter(x[per_row()], "i")), X),
    Case("psum_scatter/tiled", along(lambda x: lax.psum_scatter(x, "i", tiled=True)), X),
]
