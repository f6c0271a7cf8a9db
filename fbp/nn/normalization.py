"""Normalization: y = (x - mean) / sqrt(var + ε) · scale + bias. The layers differ in the axes that mean and var are over.

| layer         | statistics over                  | one mean per          | source                          |
|---------------|----------------------------------|-----------------------|---------------------------------|
| batch_norm    | batch and space                  | feature               | Ioffe & Szegedy 2015, alg. 1    |
| layer_norm    | features                         | example and position  | Ba et al. 2016, eq. 4           |
| rms_norm      | features, mean taken as 0        | example and position  | Zhang & Sennrich 2019, eq. 4    |
| group_norm    | space and a group of features    | example and group     | Wu & He 2018, eq. 7             |
| instance_norm | space                            | example and feature   | Ulyanov et al. 2016, eq. 7      |
| weight_norm   | the weights, not the activations | output feature        | Salimans & Kingma 2016, eq. 2   |

Names, arguments and defaults are those of `flax.linen`. Statistics are computed in float32 at least, and
the gradient, but for the running statistics, in closed form (`fbp.ops`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike

from fbp import ops
from fbp.nn.layer import Layer, widest


def _options(x, params, epsilon, dtype):
    return {"epsilon": epsilon, "dtype": dtype or widest(x, params)}


def _init_affine(features, use_scale, use_bias, param_dtype, scale_init, bias_init):
    def init(rng, x):
        scale_rng, bias_rng = jax.random.split(rng)
        params = {"scale": scale_init(scale_rng, (x.shape[-1],), param_dtype)} if use_scale else {}
        if use_bias:
            params["bias"] = bias_init(bias_rng, (x.shape[-1],), param_dtype)
        return params, features(x)

    return init


def batch_norm(
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    use_bias: bool = True,
    use_scale: bool = True,
    bias_init: initializers.Initializer = initializers.zeros,
    scale_init: initializers.Initializer = initializers.ones,
) -> Layer:
    """Normalizes each feature over batch and space: with this batch's statistics when training, else with running ones.

    State {"mean", "var"}: [features], updated when training: running ← momentum · running + (1 - momentum) · batch.

    >>> layer = batch_norm(momentum=0.9)
    >>> x = jnp.array([[1.0], [3.0]])
    >>> params, state = layer.init(jax.random.key(0), x)
    >>> y, state = layer.apply(params, state, x, train=True)
    >>> y.round(3).ravel().tolist(), state["mean"].round(3).tolist()
    ([-1.0, 1.0], [0.20000000298023224])
    """

    def statistics(x):
        stats_dtype = widest(param_dtype, jnp.float32)
        return {"mean": jnp.zeros(x.shape[-1], stats_dtype), "var": jnp.ones(x.shape[-1], stats_dtype)}

    def apply(params, state, x, *, train=False, rng=None):
        if not train:
            mean, var = state["mean"], state["var"]
            y = (x.astype(mean.dtype) - mean) * lax.rsqrt(var + jnp.asarray(epsilon, var.dtype))
            if use_scale:
                y = y * params["scale"].astype(y.dtype)
            if use_bias:
                y = y + params["bias"].astype(y.dtype)
            return y.astype(dtype or widest(x, params)), state
        y, mean, var = ops.batch_norm(x, **params, **_options(x, params, epsilon, dtype))
        new = {"mean": mean, "var": var}
        running = {k: (momentum * state[k] + (1 - momentum) * new[k]).astype(state[k].dtype) for k in state}
        return y, running

    return Layer("batch_norm", _init_affine(statistics, use_scale, use_bias, param_dtype, scale_init, bias_init), apply)


def layer_norm(
    epsilon: float = 1e-6,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    use_bias: bool = True,
    use_scale: bool = True,
    bias_init: initializers.Initializer = initializers.zeros,
    scale_init: initializers.Initializer = initializers.ones,
) -> Layer:
    """Normalizes each example over its features. x, y: [..., features]."""

    def apply(params, state, x, *, train=False, rng=None):
        return ops.layer_norm(x, **params, **_options(x, params, epsilon, dtype)), state

    return Layer("layer_norm", _init_affine(_stateless, use_scale, use_bias, param_dtype, scale_init, bias_init), apply)


def rms_norm(
    epsilon: float = 1e-6,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    use_scale: bool = True,
    scale_init: initializers.Initializer = initializers.ones,
) -> Layer:
    """y = x / sqrt(mean(x²) + ε) · scale, over the features. x, y: [..., features]."""

    def apply(params, state, x, *, train=False, rng=None):
        return ops.rms_norm(x, **params, **_options(x, params, epsilon, dtype)), state

    init = _init_affine(_stateless, use_scale, False, param_dtype, scale_init, initializers.zeros)
    return Layer("rms_norm", init, apply)


def group_norm(
    num_groups: int = 32,
    epsilon: float = 1e-6,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    use_bias: bool = True,
    use_scale: bool = True,
    bias_init: initializers.Initializer = initializers.zeros,
    scale_init: initializers.Initializer = initializers.ones,
) -> Layer:
    """Normalizes each example over space and over each of `num_groups` groups of features.

    Raises ValueError if the groups do not divide the features.
    """

    def apply(params, state, x, *, train=False, rng=None):
        return ops.group_norm(x, num_groups, **params, **_options(x, params, epsilon, dtype)), state

    return Layer("group_norm", _init_affine(_stateless, use_scale, use_bias, param_dtype, scale_init, bias_init), apply)


def instance_norm(
    epsilon: float = 1e-6,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    use_bias: bool = True,
    use_scale: bool = True,
    bias_init: initializers.Initializer = initializers.zeros,
    scale_init: initializers.Initializer = initializers.ones,
) -> Layer:
    """Normalizes each feature of each example over space. x, y: [batch, *spatial, features]."""

    def apply(params, state, x, *, train=False, rng=None):
        return ops.group_norm(x, x.shape[-1], **params, **_options(x, params, epsilon, dtype)), state

    init = _init_affine(_stateless, use_scale, use_bias, param_dtype, scale_init, bias_init)
    return Layer("instance_norm", init, apply)


def weight_norm(
    layer: Layer,
    epsilon: float = 1e-12,
    param_dtype: DTypeLike = jnp.float32,
    use_scale: bool = True,
    scale_init: initializers.Initializer = initializers.ones,
) -> Layer:
    """The layer with kernel v / sqrt(‖v‖² + ε) · scale: length and direction of each output feature's weights apart.

    ‖v‖ is over all axes but the last. Parameters: {"layer": the layer's, "scale": one [features] for each kernel}.
    """

    def kernels(params):
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        return {jax.tree_util.keystr(path): v for path, v in leaves if jax.tree_util.keystr(path[-1:]) == "['kernel']"}

    def init(rng, *xs):
        layer_rng, *scale_rngs = jax.random.split(rng, 2)
        params, state = layer.init(layer_rng, *xs)
        found = kernels(params)
        rngs = jax.random.split(scale_rngs[0], max(len(found), 1))
        scale = {k: scale_init(r, (v.shape[-1],), param_dtype) for (k, v), r in zip(found.items(), rngs, strict=False)}
        return {"layer": params, "scale": scale if use_scale else {}}, state

    def apply(params, state, *xs, train=False, rng=None):
        def normalized(path, v):
            key = jax.tree_util.keystr(path)
            if key not in kernels(params["layer"]):
                return v
            square = jnp.sum(jnp.square(v), range(v.ndim - 1), keepdims=True)
            v = v * lax.rsqrt(square + jnp.asarray(epsilon, v.dtype))
            return v * params["scale"][key].astype(v.dtype) if use_scale else v

        inner = jax.tree_util.tree_map_with_path(normalized, params["layer"])
        return layer.apply(inner, state, *xs, train=train, rng=rng)

    return Layer("weight_norm", init, apply)


def _stateless(x) -> dict:
    return {}
