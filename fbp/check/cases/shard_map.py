"""Cases for `fbp.rules.shard_map`."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from fbp.check.case import Case, normal

X = (normal(4, 4),)
XW = (normal(4, 4), normal(4, 4))


def on_devices(fun, in_specs, out_specs, **options):
    """`fun` on the devices of a mesh of two by two, or as many as there are."""

    @functools.wraps(fun)
    def wrapped(*xs):
        devices = len(jax.devices())
        shape = (2, 2) if devices >= 4 else (devices if devices < 3 else 2, 1)
        kinds = (jax.sharding.AxisType.Auto,) * 2
        mesh = jax.make_mesh(shape, ("i", "j"), axis_types=kinds, devices=jax.devices()[: shape[0] * shape[1]])
        return jax.shard_map(fun, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **options)(*xs)

    return wrapped


def layer(x, w):
    """[batch / i, inputs / j] @ [inputs / j, outputs]"""
    return jnp.tanh(lax.psum(jnp.sin(x) @ w, "j"))


def ring(x, w):
    """Each device meets the others' w, one after the other."""

    def step(carry, _):
        h, w = carry
        return (
            jnp.tanh(h * jnp.sum(w)),
            lax.ppermute(w, "i", [(0, 1), (1, 0)] if lax.axis_size("i") == 2 else [(0, 0)]),
        ), h

    (h, _), hs = lax.scan(step, (x, w), length=3)
    return h + hs[0]


def branch(x, w):
    return lax.cond(lax.axis_index("i") == 0, lambda x: jnp.sin(x), lambda x: x * x, x) * jnp.sum(w)


def on_explicit_devices(fun, in_specs, out_specs):
    """The same on a mesh with explicit sharding, where a type may say that a value is reduced, or is to be."""

    @functools.wraps(fun)
    def wrapped(*xs):
        devices = jax.devices()[:2]
        mesh = jax.make_mesh((len(devices),), ("i",), axis_types=(jax.sharding.AxisType.Explicit,), devices=devices)
        xs = [jax.device_put(x, jax.NamedSharding(mesh, spec)) for x, spec in zip(xs, in_specs, strict=True)]
        ys = jax.shard_map(fun, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(*xs)
        return jax.tree.map(lambda y: jax.sharding.reshard(y, jax.NamedSharding(mesh, P())), ys)

    return wrapped


def reduction(x, w):
    """What is the same on all devices, and what is still to be summed over them, by name."""
    h = jnp.sin(x @ lax.pcast(w, "i", to="reduced"))
    rows = lax.pcast(lax.all_gather(h, "i", tiled=True, to="reduced"), "i", to="varying")
    terms = lax.pcast(rows * jnp.sum(h), "i", to="unreduced")
    return lax.psum(terms, "i"), lax.psum_scatter(terms, "i", tiled=True)


# Not in bfloat16, in which the CPU compiler of jax 0.12 aborts at a sum over devices.
Case = functools.partial(Case, low=False)

CASES = []
for vma in (True, False):
    check = {"check_vma": vma}
    unchecked = "" if vma else " unchecked"
    CASES += [
        Case(f"shard_map{unchecked}/layer", on_devices(layer, (P("i", "j"), P("j", None)), P("i"), **check), XW),
        Case(f"shard_map{unchecked}/ring", on_devices(ring, (P("i"), P("i")), P("i"), **check), XW),
        Case(f"shard_map{unchecked}/branch", on_devices(branch, (P("i", "j"), P()), P("i", "j"), **check), XW),
        Case(
            f"shard_map{unchecked}/one result",
            on_devices(lambda x, w: lax.pmean(jnp.sum(jnp.sin(x @ jnp.sin(w))), "i"), (P("i"), P()), P(), **check),
            XW,
        ),
        Case(
            f"shard_map{unchecked}/several results",
            on_devices(
                lambda x, w: (jax.nn.relu(x), jnp.sin(w), 3.0 * jnp.sum(w)), (P("i"), P()), (P("i"), P(), P()), **check
            ),
            XW,
        ),
        Case(
            f"shard_map{unchecked}/all_gather",
            on_devices(lambda x: jnp.sin(lax.all_gather(x, "i")), P("i"), P("i"), **check),
            X,
        ),
        Case(
            f"shard_map{unchecked}/over one axis",
            jax.jit(
                on_devices(lambda x: jnp.sin(x) * lax.psum(jnp.sum(x), "i"), P("i"), P("i"), axis_names={"i"}, **check)
            ),
            X,
        ),
    ]
# JAX cannot map these operations, and a second derivative through device_put would be on two sets of devices in one program.
CASES.append(
    Case(
        "shard_map/reduction",
        on_explicit_devices(reduction, (P("i"), P()), (P(), P("i"))),
        XW,
        mapped=False,
        second=False,
    )
)
