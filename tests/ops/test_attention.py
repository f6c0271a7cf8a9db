import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import ops


def arguments(queries=7, keys=7, heads=4, key_heads=2, dtype=jnp.float32):
    rngs = jax.random.split(jax.random.key(0), 3)
    shapes = (2, queries, heads, 8), (2, keys, key_heads, 8), (2, keys, key_heads, 8)
    return [jax.random.normal(rng, shape, dtype) for rng, shape in zip(rngs, shapes, strict=True)]


def loss(attention, **options):
    weights = jax.random.normal(jax.random.key(1), (2, 7, 4, 8))
    return lambda *args: jnp.sum(weights * attention(*args, **options).astype(jnp.float32))


def assert_close(ours, theirs, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


MASK = jax.random.bernoulli(jax.random.key(2), 0.5, (2, 1, 7, 7))
BIAS = jax.random.normal(jax.random.key(3), (1, 4, 7, 7))
OPTIONS = [
    {},
    {"is_causal": True},
    {"scale": 0.3},
    {"mask": MASK},
    {"mask": MASK, "is_causal": True},
    {"bias": BIAS, "mask": MASK[:, :, :1]},
    {"bias": BIAS[:, :, :1, :], "is_causal": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "plain")
@pytest.mark.parametrize("block_size", [None, 3])
def test_value_and_gradient_are_those_of_jax_nn(options, block_size):
    ours, theirs = (
        loss(ops.dot_product_attention, block_size=block_size, **options),
        loss(jax.nn.dot_product_attention, **options),
    )
    assert_close(fbp.value_and_grad(ours, (0, 1, 2))(*arguments()), jax.value_and_grad(theirs, (0, 1, 2))(*arguments()))


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("queries, keys", [(270, 530), (530, 270)])
def test_blocks_of_more_keys_than_queries(queries, keys, with_mask):
    q, k, v = (x[:1] for x in arguments(queries, keys))
    mask = jax.random.bernoulli(jax.random.key(2), 0.5, (1, 1, queries, 1)) | (jnp.arange(keys) < 5)
    options = {"is_causal": True} | ({"mask": mask} if with_mask else {})
    weights = jax.random.normal(jax.random.key(1), q.shape)
    ours, theirs = (
        grad(lambda *args, f=f: jnp.sum(weights * f(*args, **options)), (0, 1, 2))(q, k, v) for grad, f in GRADIENTS
    )
    assert_close(ours, theirs)


def test_a_bias_has_a_gradient_of_its_shape():
    for bias in (BIAS, BIAS[:, :1], BIAS[..., :1, :]):
        slope = [grad(lambda b, f=f: loss(f)(*arguments(), b))(bias) for grad, f in GRADIENTS]
        assert_close(*slope)


GRADIENTS = (fbp.grad, ops.dot_product_attention), (jax.grad, jax.nn.dot_product_attention)


def test_a_query_that_sees_no_key_looks_at_all_of_them():
    mask = MASK.at[:, :, 2].set(False)
    ours, theirs = (grad(loss(f, mask=mask), (0, 1, 2))(*arguments()) for grad, f in GRADIENTS)
    assert_close(ours, theirs)
    assert not np.any(np.asarray(ours[0])[:, 2])


def test_bfloat16():
    with jax.numpy_dtype_promotion("standard"):  # jax.nn's own code mixes dtypes
        ours, theirs = (grad(loss(f), (0, 1, 2))(*arguments(dtype=jnp.bfloat16)) for grad, f in GRADIENTS)
    assert [x.dtype for x in ours] == [jnp.bfloat16] * 3
    assert_close(ours, theirs, 2e-2)


def test_no_keys_that_differ_in_number_and_no_examples():
    q, k, v = arguments(keys=5)
    assert_close(*(grad(loss(f), (0, 1, 2))(q, k, v) for grad, f in GRADIENTS))
    assert ops.dot_product_attention(q[:0], k[:0], v[:0]).shape == (0, 7, 4, 8)


def test_memory_grows_with_the_number_of_queries_not_its_square():
    def kept(queries):
        q = jax.ShapeDtypeStruct((1, queries, 1, 8), jnp.float32)
        _, pullback = jax.eval_shape(lambda q: fbp.vjp(ops.dot_product_attention, q, q, q), q)
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    assert kept(256) == 256 * (4 * 8 + 1) - 2 * 256 * 8  # q, which is k and v, y, and a number for each query
    assert kept(512) == 2 * kept(256)


def test_dropout_drops_the_same_weights_backward():
    options = {"dropout_rate": 0.4, "dropout_rng": jax.random.key(4)}
    ours, theirs = (
        grad(loss(ops.dot_product_attention, **options), (0, 1, 2))(*arguments()) for grad in (fbp.grad, jax.grad)
    )
    assert_close(ours, theirs)
    without = ops.dot_product_attention(*arguments())
    many = jax.vmap(lambda rng: ops.dot_product_attention(*arguments(), dropout_rate=0.4, dropout_rng=rng))
    mean = jnp.mean(many(jax.random.split(jax.random.key(5), 500)), 0)
    assert (
        float(jnp.max(jnp.abs(mean - without)))
        < 0.3
        < float(jnp.max(jnp.abs(many(jax.random.split(jax.random.key(5), 2)) - without)))
    )


def test_transformed_it_is_still_the_operation():
    f = loss(ops.dot_product_attention, block_size=3)
    batch = [jnp.stack([x, 2 * x]) for x in arguments()]
    both = lambda grad: lambda *args: jnp.sum(jax.vmap(lambda *xs: jnp.sum(grad(f)(*xs) ** 2))(*args))
    assert_close(jax.jit(fbp.grad(both(fbp.grad)))(*batch), jax.jit(jax.grad(both(jax.grad)))(*batch))
    _, pullback = fbp.vjp(jax.vmap(functools.partial(ops.dot_product_attention, implementation="blocks")), *batch)
    assert (2, 2, 7, 4, 7) not in {leaf.shape for leaf in jax.tree.leaves(pullback)}
    assert len(jax.tree.leaves(pullback)) == 5  # query, key, value, y, ℓ


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda q, k, v: (q[0], k, v), "takes .batch, time, heads, features. three times"),
        (lambda q, k, v: (q, k[:, :3], v), "do not go together"),
        (lambda q, k, v: (q[:, :, :3], k, v), "3 heads of queries are no multiple of 2"),
        (lambda q, k, v: (q, k, v, jnp.zeros((2, 3, 7, 7))), "bias .2, 3, 7, 7. does not broadcast to .2, 4, 7, 7."),
        (lambda q, k, v: (q, k, v, None, jnp.zeros((2, 1, 7, 7))), "mask has dtype float32; give booleans"),
    ],
)
def test_what_does_not_go_together_is_said(change, says):
    with pytest.raises(ValueError, match=says):
        ops.dot_product_attention(*change(*arguments()))


def test_short_sequences_are_attended_to_at_once_and_every_choice_can_be_forced():
    def primitives(**options):
        return str(jax.make_jaxpr(functools.partial(ops.dot_product_attention, **options))(*arguments()))

    assert (" attention[" in primitives(), " attention[" in primitives(implementation="blocks")) == (False, True)
    assert (
        primitives(implementation="xla") == primitives() != primitives(dropout_rate=0.1, dropout_rng=jax.random.key(0))
    )
    with pytest.raises(ValueError, match="implementation='xla' takes no block_size"):
        ops.dot_product_attention(*arguments(), block_size=2, implementation="xla")


def test_cudnn_takes_no_mask_dropout_or_block_size():
    with pytest.raises(ValueError, match="implementation='cudnn' takes no mask, block_size"):
        ops.dot_product_attention(*arguments(), mask=MASK, block_size=2, implementation="cudnn")


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("is_causal", [False, True])
def test_cudnn_gives_what_blocks_give(is_causal):
    shapes = (2, 256, 8, 64), (2, 256, 2, 64), (2, 256, 2, 64)
    args = [jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i, shape in enumerate(shapes)]
    weights = jax.random.normal(jax.random.key(3), shapes[0])

    def gradient(implementation):
        def loss(*args):
            y = ops.dot_product_attention(*args, is_causal=is_causal, implementation=implementation)
            return jnp.sum(weights * y.astype(jnp.float32))

        return jax.jit(fbp.grad(loss, (0, 1, 2)))(*args)

    assert_close(gradient(None), gradient("blocks"), 2e-2)
    assert str(jax.make_jaxpr(lambda *args: ops.dot_product_attention(*args))(*args)).count("dot_product_attention_fwd")
