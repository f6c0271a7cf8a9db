import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fbp
from fbp import nn

LOGITS = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)), jnp.float32)
LABELS = jnp.array([0, 3, 1, 2, 2, 0])
SOFT = jax.nn.softmax(LOGITS[::-1])


@pytest.mark.parametrize(
    "ours, theirs, targets",
    [
        (nn.mean_squared_error, lambda p, t: jnp.mean(optax.squared_error(p, t)), SOFT),
        (nn.huber_loss, optax.huber_loss, SOFT),
        (nn.softmax_cross_entropy, optax.softmax_cross_entropy, SOFT),
        (nn.softmax_cross_entropy_with_integer_labels, optax.softmax_cross_entropy_with_integer_labels, LABELS),
        (nn.sigmoid_binary_cross_entropy, optax.sigmoid_binary_cross_entropy, SOFT),
    ],
)
def test_losses_and_their_gradients(ours, theirs, targets):
    value, gradient = fbp.value_and_grad(lambda x: jnp.mean(ours(x, targets)))(LOGITS)
    expected, reference = jax.value_and_grad(lambda x: jnp.mean(theirs(x, targets)))(LOGITS)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, reference, rtol=1e-5, atol=1e-7)


def test_the_gradient_of_cross_entropy_is_softmax_minus_one_hot():
    gradient = fbp.grad(lambda x: jnp.sum(nn.softmax_cross_entropy_with_integer_labels(x, LABELS)))(LOGITS)
    np.testing.assert_allclose(gradient, jax.nn.softmax(LOGITS) - jax.nn.one_hot(LABELS, 4), atol=1e-6)


@pytest.mark.parametrize("labels", [[4], [-1]])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels expects integers in \[0, 4\), but they range from"):
        nn.softmax_cross_entropy_with_integer_labels(LOGITS[:1], jnp.array(labels))


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"predictions are \(6, 4\) and targets \(4,\)"):
        nn.mean_squared_error(LOGITS, LOGITS[0])
