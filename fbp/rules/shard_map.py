"""`shard_map`: a function that runs on every device of a mesh, each with its shard of the inputs.

A shard_map is a call, and its backward pass is a shard_map, too: each device keeps the residuals of its own shard.

A value varies along a mesh axis, or it is the same on all devices along it, and its cotangent is like it. With
`check_vma` the types say so, and `pvary`, which makes a value vary, is reversed by a sum. Without, every value inside
may vary: the cotangent of an output that exists in n copies is given to them in equal parts, and the cotangents of the
copies of an input are added up.

With explicit sharding a value may also be unreduced, so that what the devices have are terms of it, or reduced, one and the
same value whose cotangent is to stay unreduced. Each is the cotangent of the other.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import PartitionSpec

from fbp import _compat
from fbp.core import Rule, Stopped, table, value
from fbp.rules.common import split
from fbp.rules.residuals import Carved, carve, refill


class Place(NamedTuple):
    """Where a shard_map runs its function: on the devices of a mesh, along these axes of it."""

    mesh: Any
    axes: tuple[str, ...]
    check_vma: bool
    mapped: frozenset[str] = frozenset()  # those along which a `vmap` around it spreads its examples

    def run(self, fun, in_specs, out_specs, *args):
        options = {"mesh": self.mesh, "check_vma": self.check_vma, "axis_names": set(self.axes)}
        return jax.shard_map(fun, in_specs=in_specs, out_specs=out_specs, **options)(*args)

    def types(self, fun, in_specs, *args):
        """The types of what `fun` gives on a device, and what it says beside it."""
        seen = []

        def look(*args):
            outputs, said = fun(*args)
            seen.append((jax.tree.map(jax.typeof, outputs), said))
            return ()

        jax.eval_shape(functools.partial(self.run, look, in_specs, ()), *args)
        return seen[0]

    def varying(self, aval):
        """The axes along which a value inside may vary."""
        if self.check_vma:
            return [axis for axis in self.axes if axis in _compat.varying_axes(aval)]
        return [axis for axis in self.axes if axis not in self.mapped]

    def saved_spec(self, aval):
        """That of a residual, outside: its parts lie along a new first axis."""
        along = tuple(self.varying(aval))
        return PartitionSpec(*([along] if along else []), **(_compat.reduction(aval) if self.check_vma else {}))

    def divided(self, spec):
        """The axes by which an input or output is divided among the devices."""
        names = [name for part in spec.partitions for name in (part if isinstance(part, tuple) else (part,))]
        return [axis for axis in self.axes if axis in names]

    def copied(self, spec):
        """The other axes: along these its cotangent exists in copies."""
        apart = {*self.mapped, *self.divided(spec), *spec.reduced}
        return [axis for axis in self.axes if axis not in apart]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["saved", "known"],
    meta_fields=["tree", "sources", "saved_specs", "place", "in_specs", "out_specs"],
)
@dataclasses.dataclass(frozen=True)
class Sharded:
    """The residuals of a shard_map. `refill(Carved(saved, tree, sources), known)`, on a device, is its pullback there."""

    saved: list  # what varies has a new first axis, along which the devices' parts lie one behind the other
    known: dict[int, Any]  # inputs and outputs that the pullback reads, by place
    tree: Any
    sources: tuple[int | None, ...]
    saved_specs: tuple
    place: Place
    in_specs: tuple
    out_specs: tuple


def _shard_map_forward(site, *xs, jaxpr, mesh, in_specs, out_specs, check_vma, newly_manual_axes):
    axes = tuple(axis for axis in mesh.axis_names if axis in newly_manual_axes)
    place = Place(mesh, axes, check_vma, _compat.axes_of_vmaps())
    return _shard_map(site.vjp, jaxpr, site.needs, place, tuple(in_specs), tuple(out_specs))(*xs)


@functools.lru_cache(maxsize=4096)
def _shard_map(vjp, jaxpr, needs, place, in_specs, out_specs):
    def on_a_device(*xs):
        ys, pullback = vjp(_compat.jaxpr_fun(jaxpr), needs, *xs)
        values = [value(y) for y in ys]
        # An output is the same outside and inside if it is divided along all the axes along which it varies.
        same = [place.varying(jax.typeof(y)) == place.divided(s) for y, s in zip(values, out_specs, strict=True)]
        known = [*xs, *(y if kept else None for y, kept in zip(values, same, strict=True))]
        carved = carve(pullback, known)
        return [*values, *carved.leaves], (carved.tree, carved.sources, [isinstance(y, Stopped) for y in ys])

    def forward(*xs):
        types, (tree, sources, stops) = place.types(on_a_device, in_specs, *xs)
        saved_specs = tuple(map(place.saved_spec, types[len(stops) :]))

        def run(*xs):
            ys, saved = split(on_a_device(*xs)[0], len(stops))
            return ys, [lax.expand_dims(r, [0]) if s.partitions else r for r, s in zip(saved, saved_specs, strict=True)]

        ys, saved = place.run(run, in_specs, (list(out_specs), list(saved_specs)), *xs)
        known = {i: [*xs, *ys][i] for i in sorted(i for i in set(sources) if i is not None)}
        residuals = Sharded(saved, known, tree, sources, saved_specs, place, in_specs, out_specs)
        return [Stopped(y) if stop else y for y, stop in zip(ys, stops, strict=True)], residuals

    return jax.jit(forward)


@jax.jit
def _reverse_shard_map(sharded, y_bars):
    place, in_specs, out_specs = sharded.place, sharded.in_specs, sharded.out_specs

    def on_a_device(saved, known, y_bars):
        saved = [lax.squeeze(r, [0]) if s.partitions else r for r, s in zip(saved, sharded.saved_specs, strict=True)]
        pullback = refill(Carved(saved, sharded.tree, sharded.sources), known)
        if place.check_vma:
            return pullback(*y_bars), None
        y_bars = [None if bar is None else _part(bar, spec) for bar, spec in zip(y_bars, out_specs, strict=True)]
        return [
            None if bar is None else _sum(bar, spec) for bar, spec in zip(pullback(*y_bars), in_specs, strict=True)
        ], None

    def _part(bar, spec):
        return bar / math.prod(place.mesh.shape[axis] for axis in place.copied(spec))

    def _sum(bar, spec):
        return lax.psum(bar, tuple(place.copied(spec))) if place.copied(spec) else bar

    def where_flowing(bars, specs):
        return [None if bar is None else spec.to_ct_spec() for bar, spec in zip(bars, specs, strict=True)]

    known_specs = {i: [*in_specs, *out_specs][i] for i in sharded.known}
    specs = (list(sharded.saved_specs), known_specs, where_flowing(y_bars, out_specs))
    args = (sharded.saved, sharded.known, y_bars)
    x_bars, _ = place.types(on_a_device, specs, *args)
    return place.run(lambda *args: on_a_device(*args)[0], specs, where_flowing(x_bars, in_specs), *args)


def _shard_map_backward(site, sharded, *y_bars, **_):
    return _reverse_shard_map(sharded, list(y_bars))


RULES = {
    _compat.pvary_p: table(lambda g, *, axes: _compat.psum_invariant_p.bind(g, axes=axes)),
    _compat.psum_invariant_p: table(lambda g, *, axes: _compat.pvary_p.bind(g, axes=axes)),
    _compat.preduced_p: table(lambda g, *, axes: lax.psum(g, axes)),
    _compat.unreduced_psum_p: table(lambda g, *, axes: lax.pcast(g, axes, to="reduced")),
    _compat.reduced_vary_cast_p: table(lambda g, *, axes: lax.pcast(g, axes, to="unreduced")),
    _compat.vary_unreduced_cast_p: table(lambda g, *, axes: lax.pcast(g, axes, to="varying")),
    _compat.all_gather_reduced_p: table(
        lambda g, *, axis_name, all_gather_dimension, tiled: lax.psum_scatter(
            g, axis_name, scatter_dimension=all_gather_dimension, tiled=tiled
        )
    ),
    _compat.unreduced_reduce_scatter_p: table(
        lambda g, *, axis_name, scatter_dimension, tiled: lax.all_gather(
            g, axis_name, axis=scatter_dimension, tiled=tiled, to="reduced"
        )
    ),
    _compat.shard_map_p: Rule(_shard_map_forward, _shard_map_backward),
}
