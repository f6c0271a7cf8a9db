"""Indexing: reading some elements, or writing them. What was read is where the cotangent is written, and the reverse."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as p

from fbp.core import Patch, Rule, zeros
from fbp.rules.common import explicit_sharding, where


# The primitives move a start that is out of bounds to the nearest that is not, and -1 is out of bounds. (To the functions
# of jax.lax, -1 is the last place.)
def read_at(starts, x, shape):
    return lax.dynamic_slice(x, starts, shape, allow_negative_indices=False)


def write_at(starts, x, part):
    return lax.dynamic_update_slice(x, part, starts, allow_negative_indices=False)


def _dynamic_slice_forward(site, x, *starts, **params):
    return site.primitive.bind(x, *starts, **params), starts


def _dynamic_slice_backward(site, starts, g, **_):
    add_to = lambda x_bar: write_at(starts, x_bar, read_at(starts, x_bar, g.shape) + g)
    return [Patch(site.avals[0], add_to), *[None] * (len(site.avals) - 1)]


def _dynamic_update_slice_forward(site, x, update, *starts):
    return site.primitive.bind(x, update, *starts), starts


def _dynamic_update_slice_backward(site, starts, g):
    """What was overwritten has no influence; what was written has it where it was written."""
    update = site.avals[1]
    update_bar = read_at(starts, g, update.shape) if site.needs[1] else None
    x_bar = write_at(starts, g, zeros(update)) if site.needs[0] else None
    return [x_bar, update_bar, *[None] * len(starts)]


# ---------------------------------------------------------------------------------------------- gather and scatter


def as_scatter(numbers: lax.GatherDimensionNumbers) -> lax.ScatterDimensionNumbers:
    return lax.ScatterDimensionNumbers(
        update_window_dims=numbers.offset_dims,
        inserted_window_dims=numbers.collapsed_slice_dims,
        scatter_dims_to_operand_dims=numbers.start_index_map,
        operand_batching_dims=tuple(numbers.operand_batching_dims),
        scatter_indices_batching_dims=numbers.start_indices_batching_dims,
    )


def as_gather(numbers: lax.ScatterDimensionNumbers) -> lax.GatherDimensionNumbers:
    return lax.GatherDimensionNumbers(
        offset_dims=tuple(numbers.update_window_dims),
        collapsed_slice_dims=tuple(numbers.inserted_window_dims),
        start_index_map=tuple(numbers.scatter_dims_to_operand_dims),
        operand_batching_dims=tuple(numbers.operand_batching_dims),
        start_indices_batching_dims=tuple(numbers.scatter_indices_batching_dims),
    )


def _keep_indices(site, x, indices, *updates, **params):
    return site.primitive.bind(x, indices, *updates, **params), indices


def _gather_backward(
    site, indices, g, *, dimension_numbers, indices_are_sorted, unique_indices, mode, **_
):  # fmt: skip
    x_bar = lax.scatter_add(
        zeros(site.avals[0]), indices, g, as_scatter(dimension_numbers),
        indices_are_sorted=indices_are_sorted, unique_indices=unique_indices, mode=mode,
    )  # fmt: skip
    return [x_bar, None]


def read_back(x, indices, updates, *, dimension_numbers, mode, indices_are_sorted=False, unique_indices=False, **_):
    """What is in x at the places where a scatter wrote its updates; 0 for updates that fell outside."""
    numbers = dimension_numbers
    hidden = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window = iter(numbers.update_window_dims)
    sizes = [1 if i in hidden else updates.shape[next(window)] for i in range(x.ndim)]
    return lax.gather(
        x, indices, as_gather(numbers), sizes,
        indices_are_sorted=indices_are_sorted, unique_indices=unique_indices, mode=mode, fill_value=0,
    )  # fmt: skip


def write(scatter, x, indices, updates, *, dimension_numbers, mode, indices_are_sorted, unique_indices, **_):
    options = {"mode": mode, "indices_are_sorted": indices_are_sorted, "unique_indices": unique_indices}
    return scatter(x, indices, updates, dimension_numbers, **options)


def _scatter_add_backward(site, indices, g, **params):
    """y = x, and y[i] += u  =>  x_bar = g, u_bar = g[i]."""
    return [g, None, read_back(g, indices, site.avals[2], **params) if site.needs[2] else None]


def _scatter_sub_backward(site, indices, g, **params):
    """y = x, and y[i] -= u  =>  x_bar = g, u_bar = -g[i]."""
    x_bar, _, update_bar = _scatter_add_backward(site, indices, g, **params)
    return [x_bar, None, None if update_bar is None else -update_bar]


def _scatter_forward(site, x, indices, updates, *, update_jaxpr, **params):
    if update_jaxpr is not None and update_jaxpr.outvars[0] is not update_jaxpr.invars[1]:
        raise NotImplementedError(
            f"no cotangents for {site} when it applies a function in place: JAX defines none. Write x.at[i].set(f(x[i]))."
        )
    return _keep_indices(site, x, indices, updates, update_jaxpr=update_jaxpr, **params)


def _scatter_backward(site, indices, g, **params):
    """y = x, and y[i] = u  =>  x_bar = g but 0 at i, u_bar = g[i]. Of several updates to one place, the one that was
    left there has the cotangent: each is numbered, and the numbers are written as the updates were."""
    updates = site.avals[2]
    update_bar = read_back(g, indices, updates, **params)
    x_bar = write(lax.scatter, g, indices, zeros(updates), **params) if site.needs[0] else None
    if not site.needs[2]:
        return [x_bar, None, None]
    if not params["unique_indices"]:
        numbers = 1 + lax.iota(jnp.int32, max(updates.size, 1))[: updates.size].reshape(updates.shape)
        if sharding := explicit_sharding(updates):
            numbers = jax.sharding.reshard(numbers, sharding)
        left = write(lax.scatter, lax.full_like(g, 0, numbers.dtype), indices, numbers, **params)
        mine = read_back(left, indices, updates, **params) == numbers
        update_bar = where(mine, update_bar, lax.full_like(update_bar, 0))
    return [x_bar, None, update_bar]


def _scatter_mul_forward(site, x, indices, updates, **params):
    if site.needs[2] and not params["unique_indices"]:
        raise NotImplementedError(
            f"no cotangent for the updates of {site}: JAX defines it only for unique indices. Pass unique_indices=True "
            "if they are, or stop_gradient the updates."
        )
    residuals = indices, x if site.needs[2] else None, updates if site.needs[0] else None
    return site.primitive.bind(x, indices, updates, **params), residuals


def _scatter_mul_backward(site, residuals, g, **params):
    """y = x, and y[i] *= u  =>  x_bar = g, x_bar[i] *= u;  u_bar = (g x)[i]."""
    indices, x, updates = residuals
    x_bar = write(lax.scatter_mul, g, indices, updates, **params) if site.needs[0] else None
    return [x_bar, None, read_back(g * x, indices, site.avals[2], **params) if site.needs[2] else None]


def _scatter_choose_forward(site, x, indices, updates, **params):
    y = site.primitive.bind(x, indices, updates, **params)
    return y, (indices, x == y, read_back(y, indices, updates, **params) == updates)


def _scatter_choose_backward(site, residuals, g, **params):
    """y = x, and y[i] = max(y[i], u)  =>  g goes to x and to the updates that are the maximum, in equal parts."""
    indices, *chosen = residuals
    kept, chosen = (lax.convert_element_type(mask, g.dtype) for mask in chosen)
    part = g / write(lax.scatter_add, kept, indices, chosen, **params)
    return [kept * part, None, chosen * read_back(part, indices, site.avals[2], **params)]


RULES = {
    p.dynamic_slice_p: Rule(_dynamic_slice_forward, _dynamic_slice_backward),
    p.dynamic_update_slice_p: Rule(_dynamic_update_slice_forward, _dynamic_update_slice_backward),
    p.gather_p: Rule(_keep_indices, _gather_backward),
    p.scatter_add_p: Rule(_keep_indices, _scatter_add_backward),
    lax.scatter_sub_p: Rule(_keep_indices, _scatter_sub_backward),
    p.scatter_p: Rule(_scatter_forward, _scatter_backward),
    p.scatter_mul_p: Rule(_scatter_mul_forward, _scatter_mul_backward),
    p.scatter_max_p: Rule(_scatter_choose_forward, _scatter_choose_backward),
    p.scatter_min_p: Rule(_scatter_choose_forward, _scatter_choose_backward),
}
