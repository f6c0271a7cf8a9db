import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fbp
from fbp import nn, train
from fbp.core import Rule
from tests.train.problem import LAYER, OPTIMIZER, assert_same_bits, loss_fn, numbers, points, start


def by_hand(state, batch, loss_fn=loss_fn):
    rng = jax.random.fold_in(state.rng, state.step)
    (loss, (model_state, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params, state.model_state, batch, rng
    )
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {"loss": loss, "grad_norm": train.layer_norms(grads)}
    return train.TrainState(params, model_state, opt_state, state.step + 1, state.rng), metrics


# Without a bias before batch norm: its gradient is zero but for rounding, of which Adam makes steps.
NORMALIZED = nn.sequential(nn.dense(8, use_bias=False), nn.batch_norm(), nn.dropout(0.5), nn.dense(2))


@pytest.mark.parametrize("layer", [LAYER, NORMALIZED])
def test_steps_equal_those_of_jax_grad_and_optax(layer):
    loss = lambda *args: loss_fn(*args, layer=layer)
    ours, theirs = start(layer), start(layer)
    step, reference = train.make_train_step(loss, OPTIMIZER), jax.jit(lambda s, b: by_hand(s, b, loss))
    for _ in range(3):
        ours, our_metrics = step(ours, points())
        theirs, their_metrics = reference(theirs, points())
        assert jax.tree.structure(our_metrics) == jax.tree.structure(their_metrics)
        for a, b in (ours, theirs), (our_metrics, their_metrics):
            a, b = numbers(a), numbers(b)
            for name in b:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert int(ours.step) == 3


def test_the_given_state_is_donated():
    state = start()
    train.make_train_step(loss_fn, OPTIMIZER)(state, points())
    assert state.step.is_deleted()
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))


def test_each_step_has_its_own_generator():
    def loss(params, model_state, batch, rng):
        return jnp.sum(params["w"]), (model_state, {"drawn": jax.random.uniform(rng)})

    layer = nn.Layer("w", lambda rng, x: ({"w": jnp.ones(1)}, {}), lambda *args: None)
    state, drawn = start(layer), []
    step = train.make_train_step(loss, OPTIMIZER)
    for _ in range(3):
        state, metrics = step(state, points())
        drawn.append(float(metrics["drawn"]))
    assert len(set(drawn)) == 3


def test_accumulation_over_parts_equals_one_batch():
    one, metrics = train.make_train_step(loss_fn, OPTIMIZER)(start(), points())
    four, mean_metrics = train.make_train_step(loss_fn, OPTIMIZER, accumulate=4)(start(), points())
    assert jax.tree.structure((one, metrics)) == jax.tree.structure((four, mean_metrics))
    for what in "loss", "grad_norm":
        for a, b in zip(jax.tree.leaves(metrics[what]), jax.tree.leaves(mean_metrics[what]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one.opt_state), jax.tree.leaves(four.opt_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_accumulation_passes_the_model_state_from_part_to_part():
    def loss(params, model_state, batch, rng):
        return jnp.mean(batch["x"]) * jnp.sum(params["w"]), ({"parts": model_state["parts"] + 1}, {})

    layer = nn.Layer("w", lambda rng, x: ({"w": jnp.ones(1)}, {"parts": jnp.zeros((), jnp.int32)}), lambda *args: None)
    state, _ = train.make_train_step(loss, OPTIMIZER, accumulate=4)(start(layer), points())
    assert int(state.model_state["parts"]) == 4


def test_a_batch_that_cannot_be_split_is_refused():
    step = train.make_train_step(loss_fn, OPTIMIZER, accumulate=4)
    with pytest.raises(ValueError, match="a batch of 10 cannot be split into accumulate=4 equal parts"):
        step(start(), points(10))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_bfloat16_is_what_the_forward_pass_sees_and_nothing_else(accumulate):
    seen = {}

    def loss(params, model_state, batch, rng):
        value, (model_state, metrics) = loss_fn(params, model_state, batch, rng)
        seen.update(params=types(params), x=batch["x"].dtype, y=batch["y"].dtype, loss=value.dtype)
        return value, (model_state, metrics)

    def update(grads, opt_state, params=None):
        seen.update(grads=types(grads), stored=types(params))
        return OPTIMIZER.update(grads, opt_state, params)

    types = lambda tree: {x.dtype for x in jax.tree.leaves(tree)}
    spy = optax.GradientTransformation(OPTIMIZER.init, update)
    step = train.make_train_step(loss, spy, accumulate=accumulate, policy=train.BFLOAT16)
    state, metrics = step(start(), points())
    low, full = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    assert seen == {"params": {low}, "x": low, "y": jnp.int32, "loss": low, "grads": {full}, "stored": {full}}
    assert types(state.params) == types(metrics["grad_norm"]) == {full} and metrics["loss"].dtype == full
    exact, _ = train.make_train_step(loss_fn, OPTIMIZER)(start(), points())
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(exact.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2.1e-2)  # Adam's first step is 1e-2 one way or the other


def test_the_backward_pass_is_that_of_the_rulebook():
    doubled = Rule(lambda site, x, **_: (jax.lax.tanh(x), x), lambda site, x, g, **_: [2 * g * (1 - jnp.tanh(x) ** 2)])
    loss = lambda params, model_state, batch, rng: (jnp.sum(jnp.tanh(params["w"])), (model_state, {}))
    layer = nn.Layer("w", lambda rng, x: ({"w": jnp.ones(2)}, {}), lambda *args: None)
    norms = [
        train.make_train_step(loss, OPTIMIZER, rules=rules)(start(layer), points())[1]["grad_norm"]["w"]
        for rules in (fbp.RULES, fbp.RULES | {jax.lax.tanh_p: doubled})
    ]
    np.testing.assert_allclose(norms[1], 2 * norms[0], rtol=1e-6)


def test_layer_norms_are_named_by_path():
    norms = train.layer_norms({"conv_0": {"kernel": jnp.array([[3.0], [4.0]])}, "bias": jnp.array(-2.0)})
    assert_same_bits(norms, {"bias": jnp.array(2.0), "conv_0/kernel": jnp.array(5.0)})
