import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import ops
from fbp.rules import choices

RNGS = jax.random.split(jax.random.key(0), 4)
X, WEIGHTS = (2 * jax.random.normal(rng, (3, 5, 4, 6)) + 1 for rng in RNGS[:2])
SCALE, BIAS = (jax.random.normal(rng, (6,)) for rng in RNGS[2:])


def textbook(x, scale, bias, axes, groups=6, is_centered=True):
    x = x.reshape(*x.shape[:-1], groups, -1)
    mean = jnp.mean(x, axes, keepdims=True) if is_centered else 0.0
    var = jnp.mean((x - mean) ** 2, axes, keepdims=True)
    return ((x - mean) / jnp.sqrt(var + 1e-3)).reshape(*x.shape[:-2], -1) * scale + bias


KINDS = {
    "layer_norm": (ops.layer_norm, lambda *args: textbook(*args, (-1,), 1)),
    "rms_norm": (
        lambda x, scale, bias, **options: ops.rms_norm(x, scale, **options) + bias,
        lambda *args: textbook(*args, (-1,), 1, False),
    ),
    "batch_norm": (
        lambda *args, **options: ops.batch_norm(*args, **options)[0],
        lambda *args: textbook(*args, (0, 1, 2)),
    ),
    "group_norm": (
        lambda x, *args, **options: ops.group_norm(x, 2, *args, **options),
        lambda *args: textbook(*args, (1, 2, 4), 2),
    ),
    "instance_norm": (
        lambda x, *args, **options: ops.group_norm(x, 6, *args, **options),
        lambda *args: textbook(*args, (1, 2)),
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def loss(f, **options):
    return lambda *args: jnp.sum(WEIGHTS * f(*args, **options).astype(jnp.float32))


def assert_close(ours, theirs, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=1))


@pytest.fixture(params=[False, True], ids=["whole", "chunks"])
def chunks(request, monkeypatch):
    """Chunks of seven rows, so that the last one is smaller."""
    if request.param:
        monkeypatch.setattr(choices, "normalization", lambda shape, axes: shape[0] if 0 in axes else min(7, shape[0]))


@kinds
def test_value_and_gradient_are_those_of_the_textbook(kind, chunks):
    ours, theirs = KINDS[kind]
    args = X, SCALE, BIAS
    assert_close(
        fbp.value_and_grad(loss(ours, epsilon=1e-3), (0, 1, 2))(*args),
        jax.value_and_grad(loss(theirs), (0, 1, 2))(*args),
    )


@kinds
def test_what_is_kept_is_x_and_two_numbers_for_each_mean(kind):
    _, pullback = jax.eval_shape(lambda *args: fbp.vjp(KINDS[kind][0], *args), X, SCALE, BIAS)
    means = {"layer_norm": 60, "rms_norm": 60, "batch_norm": 6, "group_norm": 6, "instance_norm": 18}[kind]
    numbers = means if kind == "rms_norm" else 2 * means
    assert sum(leaf.size for leaf in jax.tree.leaves(pullback)) == X.size + numbers + SCALE.size


@kinds
def test_transformed_it_is_still_the_operation(kind, chunks):
    f = loss(KINDS[kind][0], epsilon=1e-3)
    batch = [jnp.stack([x, 2 * x]) for x in (X, SCALE, BIAS)]
    both = lambda grad: lambda *args: sum(jnp.sum(g**2) for g in jax.vmap(grad(f, (0, 1, 2)))(*args))
    assert_close(jax.jit(fbp.grad(both(fbp.grad)))(*batch), jax.jit(jax.grad(both(jax.grad)))(*batch), 1e-4)


@kinds
def test_bfloat16_has_statistics_in_float32(kind):
    ours, theirs = KINDS[kind]
    args = [x.astype(jnp.bfloat16) for x in (X, SCALE, BIAS)]
    with jax.numpy_dtype_promotion("standard"):
        gradient = fbp.grad(loss(ours, epsilon=1e-3), (0, 1, 2))(*args)
    assert [g.dtype for g in gradient] == [jnp.bfloat16] * 3
    assert_close(gradient, jax.grad(loss(theirs), (0, 1, 2))(*(x.astype(jnp.float32) for x in args)), 2e-2)
    far = jnp.asarray(np.arange(512) + 1000.0, jnp.bfloat16)
    assert abs(float(ops.layer_norm(far, dtype=jnp.float32).std()) - 1) < 0.01


def test_batch_norm_s_mean_and_variance_have_gradients_too():
    def of(f):
        def scalar(x):
            y, mean, var = f(x)
            return jnp.sum(WEIGHTS * y) + jnp.sum(SCALE * mean) + jnp.sum(BIAS * var)

        return scalar

    def plain(x):
        return textbook(x, 1.0, 0.0, (0, 1, 2)), jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))

    ours = lambda x: ops.batch_norm(x, epsilon=1e-3)
    assert_close(fbp.grad(of(ours))(X), jax.grad(of(plain))(X))
    only_var = lambda f: lambda x: jnp.sum(BIAS * f(x)[2])
    assert_close(fbp.grad(only_var(ours))(X), jax.grad(only_var(plain))(X))


def test_not_a_number_stays_in_its_row():
    x = X[0, 0].at[1, 2].set(jnp.nan)
    slope = fbp.grad(lambda x: jnp.sum(WEIGHTS[0, 0] * ops.layer_norm(x)))(x)
    assert np.isnan(slope).all(1).tolist() == [False, True, False, False] and np.isnan(slope).sum() == 6


def test_a_row_of_equal_numbers():
    for f in (ops.layer_norm, ops.rms_norm):
        assert_close(*(grad(lambda x: jnp.sum(SCALE * f(x, SCALE)))(jnp.ones((2, 6))) for grad in (fbp.grad, jax.grad)))  # noqa: B023


@kinds
def test_no_examples(kind):
    if kind != "batch_norm":  # a mean over nothing
        ours = lambda *args: jnp.sum(KINDS[kind][0](*args))
        slopes = fbp.grad(ours, (0, 1, 2))(X[:0], SCALE, BIAS)
        assert slopes[0].shape == (0, 5, 4, 6) and not np.any(slopes[1]) and not np.any(slopes[2])


def test_what_does_not_go_together_is_said():
    with pytest.raises(ValueError, match=r"layer_norm: scale must be \(6,\), a number for each feature, but is \(4,\)"):
        ops.layer_norm(X, SCALE[:4])
    with pytest.raises(ValueError, match="num_groups=4 cannot divide the 6 features of x"):
        ops.group_norm(X, 4)
