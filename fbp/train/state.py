"""What training carries from step to step, and in which precision it computes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from fbp.nn.layer import Layer


class TrainState(NamedTuple):
    """A pytree: all that the next step depends on, besides the batch.

    params: what the optimizer changes; model_state: what the forward pass changes (running statistics);
    opt_state: the optimizer's; step: steps taken, int32; rng: the key of the run, from which each step folds its own.
    """

    params: Any
    model_state: Any
    opt_state: Any
    step: jax.Array
    rng: jax.Array


def init_state(layer: Layer, optimizer: optax.GradientTransformation, rng: jax.Array, *xs: Any) -> TrainState:
    """The state before the first step of a layer, for inputs shaped like `xs`."""
    init_rng, run_rng = jax.random.split(rng)
    params, model_state = layer.init(init_rng, *xs)
    return TrainState(params, model_state, optimizer.init(params), jnp.zeros((), jnp.int32), run_rng)


class Policy(NamedTuple):
    """Precision: parameters are kept in one dtype, computed with in another, and the loss is in a third."""

    param: DTypeLike = jnp.float32
    compute: DTypeLike = jnp.float32
    output: DTypeLike = jnp.float32

    def to_compute(self, tree: Any) -> Any:
        return cast(tree, self.compute)


FLOAT32 = Policy()
BFLOAT16 = Policy(compute=jnp.bfloat16)


def cast(tree: Any, dtype: DTypeLike) -> Any:
    """The floating leaves of a tree in another dtype; integers, booleans and keys as they are."""

    def leaf(x):
        return x.astype(dtype) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating) else x

    return jax.tree.map(leaf, tree)
