"""Normalization, of which the backward pass reads x and two numbers for each mean.

    x̂ = ρ (x - μ),   ρ = 1 / sqrt(σ² + ε),   y = γ x̂ + β

μ and σ² are mean and variance over some of x's axes; γ and β vary over the last ones:

| operation            | x                                | mean over    | γ, β          | source                              |
|----------------------|----------------------------------|--------------|---------------|-------------------------------------|
| layer_norm, rms_norm | [positions, features]            | features     | features      | Ba et al. 2016, eq. 4; Zhang &      |
|                      |                                  |              |               | Sennrich 2019, eq. 4 (with μ = 0)   |
| batch_norm           | [..., features]                  | other axes   | features      | Ioffe & Szegedy 2015, alg. 1        |
| group_norm           | [batch, space, groups, features] | space and    | groups and    | Wu & He 2018, eq. 7; with a group   |
|                      |                                  | features     | features      | for each feature Ulyanov et al. 2016|

x̂ does not change when x is shifted or scaled, so x̄ has no part along either (Ioffe & Szegedy 2015, section 3):

    β̄ = Σ g,   γ̄ = Σ g x̂,   x̄ = ρ (γ g - mean(γ g) - x̂ mean(γ g x̂))

without mean(γ g) where μ = 0.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from fbp.core import op
from fbp.ops.common import at_least_float32, over_chunks, staged
from fbp.recompute import Clock
from fbp.rules import choices
from fbp.rules.common import written_out


def layer_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    epsilon: float = 1e-6,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """(x - mean) / sqrt(var + ε) · scale + bias, with mean and variance over the features.

    x, y: [..., features]; scale, bias: [features]. The statistics are computed in float32 at least; y is of `dtype`, by
    default x's.

    Raises ValueError for shapes that do not go together.

    >>> print(layer_norm(jnp.array([[1.0, 3.0], [5.0, 5.0]]), bias=jnp.array([0.0, 1.0])).round(1))
    [[-1.  2.]
     [ 0.  1.]]
    """
    return _normalized("layer_norm", x, (-1, x.shape[-1]), (1,), scale, bias, epsilon, dtype)[0]


def rms_norm(
    x: jax.Array, scale: jax.Array | None = None, *, epsilon: float = 1e-6, dtype: DTypeLike | None = None
) -> jax.Array:
    """x / sqrt(mean(x²) + ε) · scale, with the mean over the features; otherwise as `layer_norm`.

    >>> print(rms_norm(jnp.array([3.0, 4.0, 0.0, 0.0])).round(3))
    [1.2 1.6 0.  0. ]
    """
    return _normalized("rms_norm", x, (-1, x.shape[-1]), (1,), scale, None, epsilon, dtype, is_centered=False)[0]


def batch_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    epsilon: float = 1e-5,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `layer_norm`, with mean and variance of each feature over everything else, which it returns: y, mean, var.

    x, y: [..., features]; scale, bias, mean, var: [features].

    >>> y, mean, var = batch_norm(jnp.array([[1.0, 3.0], [5.0, 5.0]]))
    >>> y.round(3).tolist(), mean.tolist(), var.tolist()
    ([[-1.0, -1.0], [1.0, 1.0]], [3.0, 4.0], [4.0, 1.0])
    """
    axes = tuple(range(x.ndim - 1))  # as they are: XLA's sums over them are faster than over one long axis
    y, mean, var = _normalized("batch_norm", x, x.shape, axes, scale, bias, epsilon, dtype)
    return y, mean.ravel(), var.ravel()


def group_norm(
    x: jax.Array,
    num_groups: int,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    epsilon: float = 1e-6,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """As `layer_norm`, with mean and variance of each group of features of each example, over its positions too.

    x, y: [batch, ..., features]; scale, bias: [features]. The features of a group are next to each other. A group for each
    feature is instance norm.

    Raises ValueError if the groups do not divide the features.

    >>> x = jnp.array([[[1.0, 3.0, 0.0, 0.0], [1.0, 3.0, 0.0, 4.0]]])
    >>> print(group_norm(x, 2).round(2))
    [[[-1.    1.   -0.58 -0.58]
      [-1.    1.   -0.58  1.73]]]
    """
    features = x.shape[-1]
    if num_groups < 1 or features % num_groups:
        raise ValueError(f"group_norm with num_groups={num_groups} cannot divide the {features} features of x.")
    # An axis of length one at the end would keep XLA from taking several features at a time.
    groups = (features,) if num_groups == features else (num_groups, features // num_groups)
    axes = (1,) if num_groups == features else (1, 3)
    return _normalized("group_norm", x, (len(x), -1, *groups), axes, scale, bias, epsilon, dtype, len(groups))[0]


class Options(NamedTuple):
    affine: tuple[str, ...]  # which of scale and bias follow x
    axes: tuple[int, ...]  # what mean and variance are over
    affine_ndim: int  # the last axes: what scale and bias vary over
    epsilon: float
    is_centered: bool  # whether the mean is taken away
    dtype: Any  # of y
    chunk_size: int  # how much of the first axis the backward pass takes at a time


def _normalized(name, x, shape, axes, scale, bias, epsilon, dtype, affine_ndim=1, is_centered=True):
    """y, mean and variance of x seen as of this shape, in which -1 stands for what is left."""
    affine = {key: p for key, p in {"scale": scale, "bias": bias}.items() if p is not None}
    for key, p in affine.items():
        if p.shape != x.shape[-1:]:
            raise ValueError(f"{name}: {key} must be {x.shape[-1:]}, a number for each feature, but is {p.shape}.")
    rest = x.size // max(math.prod(n for n in shape if n != -1), 1)
    shape = [rest if n == -1 else n for n in shape]
    features = shape[len(shape) - affine_ndim :]
    dtype = jnp.dtype(dtype or x.dtype)
    chunk_size = choices.normalization(tuple(shape), axes)
    options = Options(tuple(affine), axes, affine_ndim, epsilon, is_centered, dtype, chunk_size)
    y, mean, var = normalize(x.reshape(shape), *(p.reshape(features) for p in affine.values()), options=options)
    return y.reshape(x.shape), mean, var


def _apply(x, affine, options):
    """y, mean and variance."""
    wide = x.astype(at_least_float32(x.dtype))
    mean = jnp.mean(wide if options.is_centered else jnp.zeros_like(wide), options.axes, keepdims=True)
    var = jnp.mean(jnp.square(wide - mean), options.axes, keepdims=True)
    return _given_statistics(x, mean, var, affine, options), mean, var


def _given_statistics(x, mean, var, affine, options):
    y = (x.astype(mean.dtype) - mean) * lax.rsqrt(var + jnp.asarray(options.epsilon, var.dtype))
    if "scale" in affine:
        y *= affine["scale"].astype(y.dtype)
    if "bias" in affine:
        y += affine["bias"].astype(y.dtype)
    return y.astype(options.dtype)


def _again(site, xs, statistics, *, options):
    (x, *affine), (mean, var) = xs, statistics
    return _given_statistics(x, mean, var, dict(zip(options.affine, affine, strict=True)), options)


def _forward(site, x, *affine, options):
    named = dict(zip(options.affine, affine, strict=True))
    y, mean, var = _apply(x, named, options)
    return [y, mean, var], (
        x,
        mean if options.is_centered else None,
        var,
        named.get("scale") if site.needs[0] else None,
    )


def _backward(site, residuals, *y_bars, options):
    x, mean, var, scale = residuals
    x_needed, *affine_needed = site.needs
    affine = dict(zip(options.affine, zip(affine_needed, site.avals[1:], strict=True), strict=True))
    dtype, n = var.dtype, max(1, math.prod(x.shape[axis] for axis in options.axes))
    gamma = jnp.ones((), dtype) if scale is None else scale.astype(dtype)
    # β̄ and mean(γ g) are sums of what g is, summed over the axes that they have in common. What is left of those of the mean
    # are features, over which it is a product with γ.
    over = tuple(range(x.ndim - options.affine_ndim))
    common = tuple(axis for axis in options.axes if axis in over)
    of_features = x.ndim - 1 in options.axes

    def mean_of(s):
        if not of_features:
            return gamma * s / n
        total = jnp.sum(s, -1) if scale is None else jnp.vecdot(s, gamma, precision=lax.Precision.HIGHEST)
        return total[..., None] / n

    in_chunks = len(x) > options.chunk_size

    def step(affine_bars, inputs):
        x, mean, var, g, mean_bar, var_bar = inputs
        if not in_chunks:  # else the compiler would find x - μ in the forward pass, and keep that, too
            x = Clock().after(x, [g])
        g = g.astype(dtype)
        rstd = lax.rsqrt(var + jnp.asarray(options.epsilon, dtype))
        x_hat = rstd * (x.astype(dtype) - mean if options.is_centered else x.astype(dtype))
        sums = {"scale": jnp.sum(g * x_hat, common, keepdims=True), "bias": jnp.sum(g, common, keepdims=True)}
        affine_bars = {name: bar + jnp.sum(sums[name], over) for name, bar in affine_bars.items()}
        if not x_needed:
            return affine_bars, None
        x_bar = gamma * g - x_hat * (mean_of(sums["scale"]) - 2 / n * var_bar / (rstd * rstd))
        if options.is_centered:
            x_bar -= mean_of(sums["bias"]) - mean_bar / (n * rstd)
        return affine_bars, (rstd * x_bar).astype(x.dtype)

    zeros = {name: jnp.zeros(aval.shape, dtype) for name, (needed, aval) in affine.items() if needed}
    inputs = x, mean, var, *written_out(y_bars, site.out_avals)
    affine_bars, x_bar = over_chunks(step, zeros, inputs, options.chunk_size)
    return [
        x_bar,
        *(affine_bars[name].astype(aval.dtype) if needed else None for name, (needed, aval) in affine.items()),
    ]


@functools.partial(op, rule=staged(_forward, _backward)._replace(again=_again))
def normalize(x, *affine, options):
    return _apply(x, dict(zip(options.affine, affine, strict=True)), options)
