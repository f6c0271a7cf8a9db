"""One training step: forward, backward, update, compiled as one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fbp.api import value_and_grad
from fbp.core import Rulebook
from fbp.rules import RULES
from fbp.train.state import FLOAT32, Policy, TrainState

LossFn = Callable[..., tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    rules: Rulebook = RULES,
    accumulate: int = 1,
    policy: Policy = FLOAT32,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
    """A jitted `(state, batch) -> (state, metrics)`. The given state is donated: use the returned one from then on.

    loss_fn: `(params, model_state, batch, rng) -> (loss, (model_state, metrics))`; the loss is the mean over the batch.
    rules: the rulebook of the backward pass.
    accumulate: the batch is split into this many parts, one after the other, whose gradients are averaged: the memory
        of one part. Equal to one large batch where the loss is a mean over examples and the model has no batch norm.
    policy: parameters and the floating inputs of the batch are cast to `policy.compute` for the forward pass; gradients
        come back in the parameters' dtype.

    metrics has "loss", what loss_fn adds, and "grad_norm": the norm of the gradient, by leaf.

    Raises ValueError if the batch cannot be split into `accumulate` parts.
    """

    def loss(params, model_state, batch, rng):
        value, aux = loss_fn(policy.to_compute(params), model_state, policy.to_compute(batch), rng)
        return value.astype(policy.output), aux

    def gradients(state, batch, rng):
        (value, (model_state, metrics)), grads = value_and_grad(loss, has_aux=True, rules=rules)(
            state.params, state.model_state, batch, rng
        )
        return model_state, grads, {"loss": value, **metrics}

    def accumulated(state, batch, rng):
        size = jax.tree.leaves(batch)[0].shape[0]
        if size % accumulate:
            raise ValueError(f"a batch of {size} cannot be split into accumulate={accumulate} equal parts.")
        parts = jax.tree.map(lambda x: x.reshape(accumulate, size // accumulate, *x.shape[1:]), batch)

        def part(carry, inputs):
            model_state, total = carry
            batch, rng = inputs
            model_state, grads, metrics = gradients(state._replace(model_state=model_state), batch, rng)
            return (model_state, jax.tree.map(jnp.add, total, grads)), metrics

        start = state.model_state, jax.tree.map(jnp.zeros_like, state.params)
        (model_state, total), metrics = lax.scan(part, start, (parts, jax.random.split(rng, accumulate)))
        mean = lambda tree: jax.tree.map(lambda x: x / accumulate, tree)
        return model_state, mean(total), jax.tree.map(lambda x: jnp.mean(x, 0), metrics)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        rng = jax.random.fold_in(state.rng, state.step)
        model_state, grads, metrics = (gradients if accumulate == 1 else accumulated)(state, batch, rng)
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules and moments mix int32 and float32
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = TrainState(params, model_state, opt_state, state.step + 1, state.rng)
        return state, metrics | {"grad_norm": layer_norms(grads)}

    return jax.jit(step, donate_argnums=0)


def layer_norms(tree: Any) -> dict[str, jax.Array]:
    """The norm of each leaf, by its path: {"conv_0/kernel": ‖·‖, ...}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): jnp.linalg.norm(x.ravel()) for path, x in leaves}
