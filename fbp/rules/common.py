"""What several chapters of rules use."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from fbp.core import zeros


def where(condition: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """x where the condition holds, else y: `jnp.where` for arrays of one shape and dtype, without its call."""
    return lax.select_n(condition, y, x)


def keep_nothing(site, *xs, **params):
    """The forward pass of a rule that needs no residual."""
    return site.primitive.bind(*xs, **params), ()


def is_complex(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.complexfloating)


def as_complex(x: jax.Array) -> jax.Array:
    """x + 0i."""
    return lax.complex(x, lax.full_like(x, 0))


def spread(g, shape, axes):
    """A cotangent of a reduced array, repeated along the axes that were reduced."""
    return lax.broadcast_in_dim(g, shape, [axis for axis in range(len(shape)) if axis not in axes])


def explicit_sharding(aval, axes=None):
    """That of the cotangent of a value of this type, or of one with these of its axes; None where XLA decides."""
    sharding = aval.to_ct_aval().sharding
    if not sharding.mesh.explicit_axes:
        return None
    spec = sharding.spec
    parts = [spec.partitions[i] for i in (range(aval.ndim) if axes is None else axes)]
    return sharding.update(spec=PartitionSpec(*parts, unreduced=spec.unreduced, reduced=spec.reduced))


def written_out(y_bars, avals):
    """Cotangents, with zeros for None."""
    return [zeros(aval) if y_bar is None else y_bar for y_bar, aval in zip(y_bars, avals, strict=True)]


def where_flowing(bars, fun):
    """`fun(places)` of the places of the cotangents that are not zero gives theirs; the others' stay zero."""
    places = [i for i, bar in enumerate(bars) if bar is not None]
    results = dict(zip(places, fun(places), strict=True))
    return [results.get(i) for i in range(len(bars))]


def split(values, *sizes):
    """The first parts of a list, of these sizes, and the rest."""
    parts = []
    for size in sizes:
        parts.append(list(values[:size]))
        values = values[size:]
    return *parts, list(values)


def taps(
    sizes: Sequence[int], dilation: Sequence[int], strides: Sequence[int], y_shape: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """For each element of a window: where in the padded input the outputs find it, as (starts, ends) of a strided slice."""
    for tap in itertools.product(*map(range, sizes)):
        starts = [i * d for i, d in zip(tap, dilation, strict=True)]
        ends = [a + s * (n - 1) + 1 if n else a for a, s, n in zip(starts, strides, y_shape, strict=True)]
        yield starts, ends


def swapped_precision(precision: Any) -> Any:
    """That of a product whose factors change places."""
    return precision[::-1] if isinstance(precision, tuple) else precision
