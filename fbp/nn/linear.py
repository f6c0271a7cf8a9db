"""Linear layers: y = x W + b, and what is linear in the same way: convolutions, embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike

from fbp.nn.layer import Layer, promote

Padding = str | int | Sequence[int | tuple[int, int]]


def dense(
    features: int,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    kernel_init: initializers.Initializer = initializers.lecun_normal(),
    bias_init: initializers.Initializer = initializers.zeros,
) -> Layer:
    """y = x W + b over the last axis; as `flax.linen.Dense`.

    x: [..., inputs], kernel W: [inputs, features], bias b: [features], y: [..., features].

    >>> layer = dense(3)
    >>> params, state = layer.init(jax.random.key(0), jnp.ones((2, 5)))
    >>> jax.tree.map(jnp.shape, params)
    {'bias': (3,), 'kernel': (5, 3)}
    >>> y, _ = layer.apply(params, state, jnp.ones((2, 5)))
    >>> y.shape
    (2, 3)
    """

    def init(rng, x):
        kernel_rng, bias_rng = jax.random.split(rng)
        params = {"kernel": kernel_init(kernel_rng, (x.shape[-1], features), param_dtype)}
        if use_bias:
            params["bias"] = bias_init(bias_rng, (features,), param_dtype)
        return params, {}

    def apply(params, state, x, *, train=False, rng=None):
        x, params = promote(x, params, dtype)
        y = x @ params["kernel"]
        return (y + params["bias"] if use_bias else y), state

    return Layer("dense", init, apply)


def conv(
    features: int,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    precision: lax.PrecisionLike = None,
    kernel_init: initializers.Initializer = initializers.lecun_normal(),
    bias_init: initializers.Initializer = initializers.zeros,
) -> Layer:
    """Convolution (cross-correlation) over the axes between the first and the last; as `flax.linen.Conv`.

    x: [batch, *spatial, inputs], kernel: [*kernel_size, inputs / groups, features], y: [batch, *spatial', features].
    `feature_group_count` = inputs makes it depthwise. padding: "SAME", "VALID", an int, or one (low, high) per axis.

    Raises ValueError if the groups do not divide inputs and features, or x has not as many axes as the kernel.

    >>> layer = conv(8, (3, 3), strides=2)
    >>> params, state = layer.init(jax.random.key(0), jnp.ones((1, 28, 28, 3)))
    >>> layer.apply(params, state, jnp.ones((1, 28, 28, 3)))[0].shape
    (1, 14, 14, 8)
    """
    window = as_tuple(kernel_size)
    n = len(window)

    def init(rng, x):
        check_axes("conv", x, n)
        inputs = x.shape[-1]
        if inputs % feature_group_count or features % feature_group_count:
            raise ValueError(
                f"conv with feature_group_count={feature_group_count} needs inputs and features that it divides, but x has "
                f"{inputs} input features, and features={features}."
            )
        kernel_rng, bias_rng = jax.random.split(rng)
        params = {"kernel": kernel_init(kernel_rng, (*window, inputs // feature_group_count, features), param_dtype)}
        if use_bias:
            params["bias"] = bias_init(bias_rng, (features,), param_dtype)
        return params, {}

    def apply(params, state, x, *, train=False, rng=None):
        check_axes("conv", x, n)
        x, params = promote(x, params, dtype)
        y = lax.conv_general_dilated(
            x,
            params["kernel"],
            window_strides=as_tuple(strides, n),
            padding=as_padding(padding, n),
            lhs_dilation=as_tuple(input_dilation, n),
            rhs_dilation=as_tuple(kernel_dilation, n),
            dimension_numbers=channels_last(n),
            feature_group_count=feature_group_count,
            precision=precision,
        )
        return (y + params["bias"] if use_bias else y), state

    return Layer("conv", init, apply)


def conv_transpose(
    features: int,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    precision: lax.PrecisionLike = None,
    kernel_init: initializers.Initializer = initializers.lecun_normal(),
    bias_init: initializers.Initializer = initializers.zeros,
    transpose_kernel: bool = False,
) -> Layer:
    """Transposed convolution: the stride spreads the input; as `flax.linen.ConvTranspose`.

    x: [batch, *spatial, inputs], kernel: [*kernel_size, inputs, features], y: [batch, *(strides · spatial), features]
    with "SAME" padding.
    """
    window = as_tuple(kernel_size)
    n = len(window)

    def init(rng, x):
        check_axes("conv_transpose", x, n)
        kernel_rng, bias_rng = jax.random.split(rng)
        shape = (features, x.shape[-1]) if transpose_kernel else (x.shape[-1], features)
        params = {"kernel": kernel_init(kernel_rng, (*window, *shape), param_dtype)}
        if use_bias:
            params["bias"] = bias_init(bias_rng, (features,), param_dtype)
        return params, {}

    def apply(params, state, x, *, train=False, rng=None):
        check_axes("conv_transpose", x, n)
        x, params = promote(x, params, dtype)
        y = lax.conv_transpose(
            x,
            params["kernel"],
            as_tuple(strides, n),
            as_padding(padding, n),
            rhs_dilation=as_tuple(kernel_dilation, n),
            dimension_numbers=channels_last(n),
            transpose_kernel=transpose_kernel,
            precision=precision,
        )
        return (y + params["bias"] if use_bias else y), state

    return Layer("conv_transpose", init, apply)


def embed(
    num_embeddings: int,
    features: int,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    embedding_init: initializers.Initializer = initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0),
) -> Layer:
    """y = E[x], a row for each integer; as `flax.linen.Embed`. x: integers of any shape, y: [*x.shape, features].

    Raises TypeError if x is not of integers, ValueError if an x that is known (not traced) has one out of range. In a
    `jit` values cannot be checked; there an index out of range gives NaN, as in Flax.
    """

    def check(x):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"embed takes integers, but x is {x.dtype}. Convert tokens with x.astype(jnp.int32).")

    def init(rng, x):
        check(x)
        return {"embedding": embedding_init(rng, (num_embeddings, features), param_dtype)}, {}

    def apply(params, state, x, *, train=False, rng=None):
        check(x)
        check_range("embed", x, num_embeddings)
        table = params["embedding"]
        return jnp.take(table.astype(dtype or table.dtype), x, axis=0), state

    return Layer("embed", init, apply)


def check_range(name: str, x, n: int) -> None:
    """ValueError if concrete integers are not all in [0, n)."""
    if isinstance(x, jax.core.Tracer) or not np.size(x):
        return
    values = np.asarray(x)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= n:
        raise ValueError(
            f"{name} expects integers in [0, {n}), but they range from {low} to {high}. Check how they were "
            "encoded, or raise the number of classes."
        )


def check_axes(name: str, x, n: int) -> None:
    if len(x.shape) != n + 2:
        raise ValueError(
            f"{name} with a kernel over {n} axes takes x: [batch, {', '.join(['spatial'] * n)}, inputs], but x has shape "
            f"{tuple(x.shape)}."
        )


def channels_last(n: int) -> lax.ConvDimensionNumbers:
    """[batch, *spatial, features] for x and y, [*spatial, inputs, outputs] for the kernel."""
    image = (0, n + 1, *range(1, n + 1))
    return lax.ConvDimensionNumbers(image, (n + 1, n, *range(n)), image)


def as_tuple(x: int | Sequence[int], n: int | None = None) -> tuple[int, ...]:
    return ((x,) * (n or 1)) if isinstance(x, int) else tuple(x)


def as_padding(padding: Padding, n: int) -> str | list[tuple[int, int]]:
    if isinstance(padding, str):
        return padding
    pads = (padding,) * n if isinstance(padding, int) else padding
    return [(p, p) if isinstance(p, int) else (p[0], p[1]) for p in pads]
