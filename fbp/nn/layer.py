"""What a layer is: two pure functions over a pytree of parameters, and a name.

Everything a layer knows is in its arguments. Parameters are what the optimizer changes; state is what the forward pass
itself changes (the running statistics of batch norm); both are pytrees that the caller holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

Params = Any
State = Any


class Layer(NamedTuple):
    """A differentiable function with parameters.

    `init(rng, *xs) -> (params, state)` looks only at the shapes and dtypes of `xs`, so `jax.ShapeDtypeStruct`s will do.
    `apply(params, state, *xs, train=False, rng=None) -> (y, state)` is pure: the same arguments give the same result.
    A layer without state has `{}` for it.
    """

    name: str
    init: Callable[..., tuple[Params, State]]
    apply: Callable[..., tuple[Any, State]]


def stateless(name: str, fun: Callable[[jax.Array], jax.Array]) -> Layer:
    """The layer y = fun(x), with nothing to learn and nothing to remember."""
    return Layer(name, lambda rng, *xs: ({}, {}), lambda params, state, *xs, train=False, rng=None: (fun(*xs), state))


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


def promote(x: jax.Array, params: Params, dtype: DTypeLike | None) -> tuple[jax.Array, Params]:
    """Brings an input and its parameters to one dtype to compute in: `dtype`, or, as in Flax, the widest among them."""
    dtype = dtype or jnp.result_type(x, *jax.tree.leaves(params))
    return x.astype(dtype), jax.tree.map(lambda p: p.astype(dtype), params)


def sequential(*layers: Layer) -> Layer:
    """y = f_n(... f_2(f_1(x))). Parameters are keyed `dense_0`, `dense_1`, ... by name and order, as in Flax, and each
    layer runs under a `jax.named_scope` of that key, which is the path that fbp's selectors and reports show."""
    keys = number(layer.name for layer in layers)

    def init(rng, x):
        params, state = {}, {}
        for key, layer, layer_rng in zip(keys, layers, jax.random.split(rng, len(layers)), strict=True):
            params[key], state[key] = layer.init(layer_rng, x)
            x = jax.eval_shape(lambda p, s, x, apply=layer.apply: apply(p, s, x)[0], params[key], state[key], x)
        return params, state

    def apply(params, state, x, *, train=False, rng=None):
        rngs = [None] * len(layers) if rng is None else jax.random.split(rng, len(layers))
        new_state = {}
        for key, layer, layer_rng in zip(keys, layers, rngs, strict=True):
            with jax.named_scope(key):
                x, new_state[key] = layer.apply(params[key], state[key], x, train=train, rng=layer_rng)
        return x, new_state

    return Layer("sequential", init, apply)


def number(names) -> list[str]:
    """["dense", "relu", "dense"] -> ["dense_0", "relu_0", "dense_1"]."""
    seen: dict[str, int] = {}
    keys = []
    for name in names:
        keys.append(f"{name}_{seen.get(name, 0)}")
        seen[name] = seen.get(name, 0) + 1
    return keys
