"""Deep nets of equal layers, with parameters stacked along their first axis, whose activations are not kept for the backward
pass but computed again. (`sequential` keeps them, and its layers may differ.)"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fbp import ops
from fbp.nn.layer import Layer, output_shape


def stack(layer: Layer, depth: int, keep_every: int = 1) -> Layer:
    """y = f_L(... f_2(f_1(x))) of L = depth equal layers, by `fbp.ops.stack`; parameters as in `flax.linen.scan`.

    Each parameter has a first axis of length `depth`. The backward pass keeps the input of every layer, or every
    `keep_every`-th. Options of apply (a mask) go to every layer, random numbers are split among them.

    Raises ValueError if the layer has state, or gives something of another shape than it takes.

    >>> from fbp.nn import dense, residual
    >>> layer = stack(residual(dense(4)), 100)
    >>> params, state = layer.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> jax.tree.map(jnp.shape, params)
    {'layer': {'bias': (100, 4), 'kernel': (100, 4, 4)}}
    """

    def init(rng, x):
        return _init("stack", layer, rng, depth, x)

    def apply(params, state, x, *, train=False, rng=None, **options):
        def block(inputs, x):
            params, rng = inputs
            return layer.apply(params, state, x, train=train, rng=rng, **options)[0]

        return ops.stack(block, (params, _split(rng, depth)), x, length=depth, keep_every=keep_every), state

    return Layer("stack", init, apply)


def reversible(f: Layer, g: Layer, depth: int) -> Layer:
    """y₁ = x₁ + f(x₂), y₂ = x₂ + g(y₁), `depth` times, by `fbp.ops.reversible`: in memory that does not grow with depth.

    x₁ and x₂ are the halves of x along its last axis (Gomez et al. 2017, section 3.1). f and g give what they take; each of
    their parameters has a first axis of length `depth`. See `fbp.ops.reversible` about rounding.

    Raises ValueError if x cannot be halved, or if f or g has state, or gives something of another shape than it takes.

    >>> from fbp.nn import dense
    >>> layer = reversible(dense(2), dense(2), 100)
    >>> params, state = layer.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> jax.tree.map(jnp.shape, params)
    {'f': {'bias': (100, 2), 'kernel': (100, 2, 2)}, 'g': {'bias': (100, 2), 'kernel': (100, 2, 2)}}
    """
    halves = {"f": f, "g": g}

    def init(rng, x):
        if x.shape[-1] % 2:
            raise ValueError(
                f"reversible halves x along its last axis, which has {x.shape[-1]} features: an odd number."
            )
        half = jax.ShapeDtypeStruct((*x.shape[:-1], x.shape[-1] // 2), x.dtype)
        rngs = jax.random.split(rng)
        both = {key: _init("reversible", halves[key], r, depth, half) for key, r in zip(halves, rngs, strict=True)}
        return {key: params for key, (params, _) in both.items()}, {key: state for key, (_, state) in both.items()}

    def apply(params, state, x, *, train=False, rng=None):
        def half(key):
            return lambda inputs, x: halves[key].apply(inputs[0], state[key], x, train=train, rng=inputs[1])[0]

        rngs = [None, None] if rng is None else jax.random.split(rng)
        both = (params["f"], _split(rngs[0], depth)), (params["g"], _split(rngs[1], depth))
        x1, x2 = jnp.split(x, 2, -1)
        y1, y2 = ops.reversible(half("f"), half("g"), both, (x1, x2), length=depth)
        return jnp.concatenate([y1, y2], -1), state

    return Layer("reversible", init, apply)


def _split(rng: jax.Array | None, depth: int) -> jax.Array | None:
    return None if rng is None else jax.random.split(rng, depth)


def _init(name: str, layer: Layer, rng, depth: int, x):
    """The stacked parameters of `depth` layers, and their state, which is empty."""
    one, state = jax.eval_shape(lambda rng: layer.init(rng, x), rng)
    if jax.tree.leaves(state):
        raise ValueError(
            f"{name} runs its layers again on the way back, so they may not have state, but {layer.name} has some: "
            f"{jax.tree.map(lambda leaf: leaf.shape, state)}. Use layer_norm or group_norm for batch_norm, or sequential."
        )
    y = output_shape(layer, one, state, x)
    if y.shape != x.shape:
        raise ValueError(
            f"{name} needs a layer that gives what it takes, but {layer.name} makes {y.shape} of {x.shape}."
        )
    return jax.vmap(lambda rng: layer.init(rng, x)[0])(jax.random.split(rng, depth)), state
