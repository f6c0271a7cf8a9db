import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fbp
from fbp import ops

RNGS = jax.random.split(jax.random.key(0), 5)
X, W, B = (jax.random.normal(rng, shape) for rng, shape in zip(RNGS, [(2, 5, 4), (4, 7), (7,)], strict=False))
LABELS = jax.random.randint(RNGS[3], (2, 5), 0, 7)
WHERE = jax.random.bernoulli(RNGS[4], 0.6, (2, 5))


def textbook(x, w, b, where=None, label_smoothing=0.0, z_loss=0.0):
    logits = (x @ w + b).astype(jnp.float32)
    targets = optax.smooth_labels(jax.nn.one_hot(LABELS, 7), label_smoothing)
    losses = optax.softmax_cross_entropy(logits, targets) + z_loss * jax.nn.logsumexp(logits, -1) ** 2
    return jnp.mean(losses, where=where)


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 5])
@pytest.mark.parametrize("options", [{}, {"where": WHERE}, {"label_smoothing": 0.1}, {"z_loss": 0.1}], ids=str)
def test_value_and_gradient_are_those_of_the_textbook(options, chunk_size):
    def ours(x, w, b):
        return 3 * ops.linear_cross_entropy(x, w, LABELS, b, chunk_size=chunk_size, **options)

    loss, gradient = fbp.value_and_grad(ours, (0, 1, 2))(X, W, B)
    expected, reference = jax.value_and_grad(lambda *args: 3 * textbook(*args, **options), (0, 1, 2))(X, W, B)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for a, b in zip(gradient, reference, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_mean_of_nothing_is_not_a_number():
    loss = ops.linear_cross_entropy(X, W, LABELS, where=jnp.zeros_like(WHERE))
    assert np.isnan(textbook(X, W, B, jnp.zeros_like(WHERE))) and np.isnan(loss)


def test_an_infinite_logit_of_an_example_that_does_not_count():
    x = X.at[0, 0].set(jnp.inf)
    where = jnp.ones_like(WHERE).at[0, 0].set(False)
    loss, slope = fbp.value_and_grad(lambda w: ops.linear_cross_entropy(x, w, LABELS, where=where))(W)
    assert np.isfinite(loss) and np.isnan(slope).any()  # as where=... of a mean has it: 0 times NaN in the chain rule
    assert np.isnan(jax.grad(lambda w: textbook(x, w, 0.0, where))(W)).any()


@pytest.mark.parametrize("chunk_size", [2, 7])
def test_classes_that_are_ruled_out(chunk_size):
    ruled_out = B.at[:4].set(-jnp.inf)  # whole chunks of them
    labels = jnp.full_like(LABELS, 5)
    logits = lambda x, w: optax.softmax_cross_entropy_with_integer_labels(x @ w + ruled_out, labels).mean()
    ours = lambda x, w: ops.linear_cross_entropy(x, w, labels, ruled_out, chunk_size=chunk_size)
    for a, b in zip(fbp.grad(ours, (0, 1))(X, W), jax.grad(logits, (0, 1))(X, W), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("label", [-1, -7, 7, -8])
def test_labels_out_of_range_are_taken_as_an_index_is(label):
    labels = LABELS.at[0, 0].set(label)
    ours = lambda w: ops.linear_cross_entropy(X, w, labels, chunk_size=3)
    textbook = lambda w: optax.softmax_cross_entropy_with_integer_labels(X @ w, labels).mean()
    np.testing.assert_allclose(ours(W), textbook(W), rtol=1e-6)
    if label in (-1, -7):
        np.testing.assert_allclose(fbp.grad(ours)(W), jax.grad(textbook)(W), rtol=1e-5, atol=1e-6)


def test_no_matrix_of_logits_is_kept_or_made():
    types = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4096, 8), (8, 5000))]
    labels = jnp.zeros(4096, int)
    program = jax.make_jaxpr(fbp.grad(lambda x, w: ops.linear_cross_entropy(x, w, labels), (0, 1)))(*types)
    assert "4096,5000" not in str(program)
    textbook = lambda x, w: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x @ w, labels))
    assert "4096,5000" in str(jax.make_jaxpr(fbp.grad(textbook, (0, 1)))(*types))


def test_bfloat16_adds_up_in_float32():
    x, w = X.astype(jnp.bfloat16), W.astype(jnp.bfloat16)
    loss, gradient = fbp.value_and_grad(lambda x, w: ops.linear_cross_entropy(x, w, LABELS), (0, 1))(x, w)
    assert loss.dtype == jnp.float32 and [g.dtype for g in gradient] == [jnp.bfloat16] * 2
    np.testing.assert_allclose(loss, textbook(X, W, 0.0), rtol=2e-2)


@pytest.mark.parametrize(
    "args, says",
    [
        ((X, W.T, LABELS), r"kernel \[features, classes\], but got \(2, 5, 4\), \(7, 4\)"),
        ((X, W, LABELS[0]), r"labels must be integers \(2, 5\), but are int32 \(5,\)"),
        ((X, W, LABELS.astype(jnp.float32)), "labels must be integers"),
        ((X, W, LABELS, B[:3]), r"bias must be \(7,\), but is \(3,\)"),
        ((X, W, LABELS, None, LABELS), "where must be booleans"),
    ],
)
def test_what_does_not_go_together_is_said(args, says):
    with pytest.raises(ValueError, match=says):
        ops.linear_cross_entropy(*args)
