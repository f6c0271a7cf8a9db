"""A small problem to train on: which side of a line is a point on?"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fbp import nn, train

LAYER = nn.mlp((8, 2))
OPTIMIZER = optax.adamw(1e-2)


def points(n=16):
    x = np.random.default_rng(0).standard_normal((n, 3)).astype(np.float32)
    return {"x": x, "y": (x.sum(1) > 0).astype(np.int32)}


def loss_fn(params, model_state, batch, rng, layer=LAYER):
    logits, model_state = layer.apply(params, model_state, batch["x"], train=True, rng=rng)
    targets = jax.nn.one_hot(batch["y"], 2, dtype=logits.dtype)
    return jnp.mean(nn.softmax_cross_entropy(logits, targets)), (model_state, {"largest": jnp.max(logits)})


def start(layer=LAYER, optimizer=OPTIMIZER, seed=0):
    return train.init_state(layer, optimizer, jax.random.key(seed), points(1)["x"])


def numbers(tree):
    """The leaves of a tree by path, as numpy arrays; keys as their numbers."""
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return {jax.tree_util.keystr(path): np.array(plain(x)) for path, x in jax.tree.leaves_with_path(tree)}


def assert_same_bits(a, b):
    a, b = numbers(a), numbers(b)
    assert list(a) == list(b)
    for name, x in a.items():
        assert x.dtype == b[name].dtype and x.tobytes() == b[name].tobytes(), name
