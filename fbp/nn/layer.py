"""What a layer is: two pure functions over a pytree of parameters, and a name.

Everything a layer knows is in its arguments. Parameters are what the optimizer changes; state is what the forward pass
itself changes (the running statistics of batch norm); both are pytrees that the caller holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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


def promote(x: jax.Array, params: Params, dtype: DTypeLike | None) -> tuple[jax.Array, Params]:
    """Brings an input and its parameters to one dtype to compute in: `dtype`, or, as in Flax, the widest among them."""
    dtype = dtype or widest(x, params)
    return x.astype(dtype), jax.tree.map(lambda p: p.astype(dtype), params)


def widest(*trees: Any) -> DTypeLike:
    """The dtype to which all leaves promote. Asked for here, so it holds under strict promotion too."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*jax.tree.leaves(trees))


def split_rng(rng: jax.Array | None, n: int) -> Sequence[jax.Array | None]:
    """One generator for each of n layers; None where there is none."""
    return [None] * n if rng is None else list(jax.random.split(rng, n))


def output_shape(layer: Layer, params: Params, state: State, *xs: Any) -> Any:
    """Shape and dtype of a layer's output, without running it."""
    return jax.eval_shape(lambda p, s, *xs: layer.apply(p, s, *xs)[0], params, state, *xs)


def sequential(*layers: Layer) -> Layer:
    """y = f_n(... f_2(f_1(x))). Parameters are keyed `dense_0`, `dense_1`, ... by name and order, as in Flax, and each
    layer runs under a `jax.named_scope` of that key, which is the path that rules, reports and profilers show.

    >>> from fbp.nn import dense, relu
    >>> layer = sequential(dense(4), relu(), dense(2))
    >>> params, state = layer.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> sorted(params)
    ['dense_0', 'dense_1', 'relu_0']
    """
    keys = number(layer.name for layer in layers)

    def init(rng, x):
        params, state = {}, {}
        for key, layer, layer_rng in zip(keys, layers, split_rng(rng, len(layers)), strict=True):
            params[key], state[key] = layer.init(layer_rng, x)
            x = output_shape(layer, params[key], state[key], x)
        return params, state

    def apply(params, state, x, *, train=False, rng=None):
        new_state = {}
        for key, layer, layer_rng in zip(keys, layers, split_rng(rng, len(layers)), strict=True):
            with jax.named_scope(key):
                x, new_state[key] = layer.apply(params[key], state[key], x, train=train, rng=layer_rng)
        return x, new_state

    return Layer("sequential", init, apply)


def residual(layer: Layer, shortcut: Layer | None = None) -> Layer:
    """y = x + f(x) (He et al. 2016, eq. 1), or y = s(x) + f(x) with a shortcut that changes the shape (eq. 2)."""
    parts = {"layer": layer} | ({"shortcut": shortcut} if shortcut else {})

    def init(rng, x):
        both = {key: part.init(r, x) for (key, part), r in zip(parts.items(), split_rng(rng, len(parts)), strict=True)}
        return {key: params for key, (params, _) in both.items()}, {key: state for key, (_, state) in both.items()}

    def apply(params, state, x, *, train=False, rng=None):
        ys, new_state = {"shortcut": x}, {}
        for (key, part), part_rng in zip(parts.items(), split_rng(rng, len(parts)), strict=True):
            with jax.named_scope(key):
                ys[key], new_state[key] = part.apply(params[key], state[key], x, train=train, rng=part_rng)
        if ys["layer"].shape != ys["shortcut"].shape:
            raise ValueError(
                f"residual adds f(x) of shape {ys['layer'].shape} to x of shape {ys['shortcut'].shape}. Give the layer as "
                "many features as its input, or pass a shortcut layer that changes the shape."
            )
        return ys["shortcut"] + ys["layer"], new_state

    return Layer("residual", init, apply)


def number(names: Iterable[str]) -> list[str]:
    """["dense", "relu", "dense"] -> ["dense_0", "relu_0", "dense_1"]."""
    seen: dict[str, int] = {}
    keys = []
    for name in names:
        keys.append(f"{name}_{seen.get(name, 0)}")
        seen[name] = seen.get(name, 0) + 1
    return keys
