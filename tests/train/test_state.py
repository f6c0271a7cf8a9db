import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fbp import nn, train
from fbp.train.state import cast
from tests.train.problem import OPTIMIZER, assert_same_bits, points, start


def test_the_first_state_holds_what_init_gives():
    rng = jax.random.key(3)
    layer = nn.sequential(nn.dense(4), nn.batch_norm())
    x = points()["x"]
    state = train.init_state(layer, OPTIMIZER, rng, x)
    init_rng, run_rng = jax.random.split(rng)
    params, model_state = layer.init(init_rng, x)
    wanted = train.TrainState(params, model_state, OPTIMIZER.init(params), jnp.zeros((), jnp.int32), run_rng)
    assert_same_bits(state, wanted)


def test_the_first_state_depends_on_the_shape_of_the_input_alone():
    x = points()["x"]
    state = train.init_state(nn.dense(4), OPTIMIZER, jax.random.key(0), jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert_same_bits(state, train.init_state(nn.dense(4), OPTIMIZER, jax.random.key(0), x))


def test_a_state_is_a_pytree():
    state = start()
    assert isinstance(jax.tree.map(lambda x: x, state), train.TrainState)


def test_cast_changes_floating_leaves_only():
    tree = {"f": jnp.ones(2), "n": np.ones(2), "i": jnp.arange(2), "b": jnp.array(True), "k": jax.random.key(0)}
    types = {name: x.dtype for name, x in cast(tree, jnp.bfloat16).items()}
    kept = {name: tree[name].dtype for name in "ibk"}
    assert types == {"f": jnp.bfloat16, "n": jnp.bfloat16, **kept}


@pytest.mark.parametrize("policy, dtype", [(train.FLOAT32, jnp.float32), (train.BFLOAT16, jnp.bfloat16)])
def test_a_policy_casts_to_what_it_computes_in(policy, dtype):
    assert policy.to_compute(jnp.ones(1)).dtype == dtype
    assert policy.param == policy.output == jnp.float32
