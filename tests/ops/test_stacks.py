import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp import ops

RNGS = jax.random.split(jax.random.key(0), 3)
DEPTH = 6
PARAMS = {"w": jax.random.normal(RNGS[0], (DEPTH, 4, 4)) / 2, "b": jax.random.normal(RNGS[1], (DEPTH, 4))}
X = jax.random.normal(RNGS[2], (3, 4))


def block(params, x):
    return x + jnp.tanh(x @ params["w"] + params["b"])


def half(params, x):
    return jnp.tanh(x @ params["w"] + params["b"])


def stacked(params, x, **options):
    return jnp.sum(ops.stack(block, params, x, **options) ** 3)


def reversible(params, x):
    y1, y2 = ops.reversible(half, half, (params, jax.tree.map(lambda p: 2 * p, params)), (x, 2 * x))
    return jnp.sum(y1**3) + jnp.sum(y2**2)


def one_after_the_other(params, x):
    for i in range(len(params["w"])):
        x = block(jax.tree.map(lambda p, i=i: p[i], params), x)
    return jnp.sum(x**3)


def reversible_one_after_the_other(params, x):
    x1, x2 = x, 2 * x
    for i in range(len(params["w"])):
        x1 = x1 + half(jax.tree.map(lambda p, i=i: p[i], params), x2)
        x2 = x2 + half(jax.tree.map(lambda p, i=i: 2 * p[i], params), x1)
    return jnp.sum(x1**3) + jnp.sum(x2**2)


BOTH = pytest.mark.parametrize(
    "ours, textbook", [(stacked, one_after_the_other), (reversible, reversible_one_after_the_other)]
)


def assert_close(ours, theirs, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=0))


@BOTH
@pytest.mark.parametrize("depth", [0, 1, DEPTH])
def test_value_and_gradient_are_those_of_the_blocks_one_after_the_other(ours, textbook, depth):
    params = jax.tree.map(lambda p: p[:depth], PARAMS)
    assert_close(*(grad(f, (0, 1))(params, X) for grad, f in
                   [(fbp.value_and_grad, ours), (jax.value_and_grad, textbook)]))  # fmt: skip


@BOTH
def test_transformed_they_are_still_the_operation(ours, textbook):
    def slopes(grad, f):
        per_example = jax.vmap(lambda x: jnp.sum(grad(f)(PARAMS, x)["w"] ** 2))
        return jax.jit(grad(lambda x: jnp.sum(per_example(x))))(X[:, None])

    assert_close(slopes(fbp.grad, ours), slopes(jax.grad, textbook), 1e-4)
    assert_close(jax.grad(ours)(PARAMS, X), jax.grad(textbook)(PARAMS, X))


@BOTH
def test_float64_is_exact_and_bfloat16_is_itself(ours, textbook):
    with jax.enable_x64(True):
        args = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (PARAMS, X))
        assert_close(fbp.grad(ours, (0, 1))(*args), jax.grad(textbook, (0, 1))(*args), 1e-13)
    args = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (PARAMS, X / 8))
    small = jax.tree.map(lambda p: p[:2], args[0]), args[1]
    assert_close(fbp.grad(ours, (0, 1))(*small), jax.grad(textbook, (0, 1))(*small), 0.1)


@pytest.mark.parametrize("keep_every", [2, 3, 6])
def test_every_kth_input_is_kept(keep_every):
    loss = lambda params, x: stacked(params, x, keep_every=keep_every)
    assert_close(fbp.grad(loss, (0, 1))(PARAMS, X), jax.grad(one_after_the_other, (0, 1))(PARAMS, X))
    kept = {leaf.shape for leaf in jax.tree.leaves(fbp.vjp(loss, PARAMS, X)[1]) if leaf.shape[-2:] == X.shape}
    assert kept == {(DEPTH // keep_every, *X.shape), X.shape}  # and y, for the cube


def test_nothing_but_each_blocks_input_is_kept():
    run = lambda params, x: ops.stack(block, params, x)
    kept = jax.tree.leaves(fbp.vjp(run, PARAMS, X)[1])
    assert sorted(leaf.shape for leaf in kept) == sorted([(DEPTH, *X.shape), *(p.shape for p in PARAMS.values())])


def test_the_memory_of_a_reversible_stack_does_not_grow_with_depth():
    def temporary(depth):
        types = jax.tree.map(lambda p: jax.ShapeDtypeStruct((depth, *p.shape[1:]), p.dtype), PARAMS)
        loss = lambda params, x: jnp.sum(ops.reversible(half, half, (params, params), (x, x))[0])
        compiled = jax.jit(fbp.grad(loss, 1)).lower(types, jax.ShapeDtypeStruct((300, 4), X.dtype)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(1000) < temporary(10) + 2**12


@pytest.mark.parametrize("added, of_kept, of_rebuilt", [(1 / 32, 5e-6, 1e-5), (1 / 8, 2e-5, 1e-3)])
def test_rounding_of_a_thousand_reversible_layers(added, of_kept, of_rebuilt):
    """How far gradients in float32 are from those in float64, where every layer adds such a part of x."""
    depth, width = 1000, 16
    w = jax.random.normal(jax.random.key(3), (2, depth, width, width)) * added / np.sqrt(width)
    x = jax.random.normal(jax.random.key(4), (8, width))

    def loss(w, x):
        layer = lambda w, x: jnp.tanh(x @ w)
        return jnp.mean(ops.reversible(layer, layer, (w[0], w[1]), (x, x))[0] ** 2)

    with jax.enable_x64(True):
        exact = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(w, jnp.float64), jnp.asarray(x, jnp.float64)))
    gradients = [np.asarray(jax.jit(grad(loss))(w, x)) for grad in (jax.grad, fbp.grad)]
    kept, rebuilt = (np.abs(gradient - exact).max() / np.abs(exact).max() for gradient in gradients)
    assert kept < of_kept and rebuilt < of_rebuilt, (kept, rebuilt)


@pytest.mark.parametrize("loss", [stacked, reversible])
def test_a_replaced_rule_reaches_inside(loss):
    doubled = fbp.RULES | {jax.lax.tanh_p: fbp.table(lambda g, y: 2 * g * (1 - y * y))}
    short = jax.tree.map(lambda p: p[:1], PARAMS)
    once, twice = fbp.grad(loss)(short, X), fbp.grad(loss, rules=doubled)(short, X)
    assert float(jnp.abs(twice["b"]).max()) > 1.2 * float(jnp.abs(once["b"]).max())
    straight = fbp.grad(loss, rules=fbp.RULES | {jax.lax.tanh_p: fbp.table(lambda g: 0 * g)})(PARAMS, X)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(straight))


def test_what_a_block_closes_over_has_a_gradient():
    def loss(shared, keep, x):
        y = ops.stack(lambda w, x: x + jnp.tanh(x @ w * shared), PARAMS["w"], x)
        return jnp.sum(ops.reversible(*[lambda w, x: jnp.sin(x @ w * shared)] * 2, (PARAMS["w"],) * 2, (y, keep))[1])

    def plain(shared, keep, x):
        for w in PARAMS["w"]:
            x = x + jnp.tanh(x @ w * shared)
        for w in PARAMS["w"]:
            x = x + jnp.sin(keep @ w * shared)
            keep = keep + jnp.sin(x @ w * shared)
        return jnp.sum(keep)

    args = 0.7, X, X / 2
    for transform in lambda f: f, jax.jit:
        ours, theirs = (transform(grad(f, (0, 1, 2)))(*args) for grad, f in [(fbp.grad, loss), (jax.grad, plain)])
        assert_close(ours, theirs, 1e-4)


def test_integers_keys_and_what_wants_no_gradient_pass_through():
    keys = jax.random.split(jax.random.key(5), DEPTH)

    def run(b, x, dropping=True):
        def block(params, at):
            key, b = params
            kept = jax.random.bernoulli(key, 0.5, X.shape) if dropping else True
            return {"x": jnp.where(kept, jnp.sin(at["x"] + b), at["x"]), "n": at["n"] + 1}

        y = ops.stack(block, (keys, b), {"x": x, "n": 0}, keep_every=2)
        return jnp.sum(y["x"]) * y["n"].astype(jnp.float32)

    for argnums in 0, 1, (0, 1):
        assert_close(fbp.grad(run, argnums)(PARAMS["b"], X), jax.grad(run, argnums)(PARAMS["b"], X))


def test_blocks_without_parameters_need_a_length():
    loss = lambda x: jnp.sum(ops.stack(lambda _, x: jnp.sin(x), None, x, length=3))
    assert_close(fbp.grad(loss)(X), jax.grad(lambda x: jnp.sum(jnp.sin(jnp.sin(jnp.sin(x)))))(X))
    with pytest.raises(ValueError, match="stack: without parameters the number of blocks is not known; pass length"):
        ops.stack(lambda _, x: x, (), X)


@pytest.mark.parametrize(
    "call, error, says",
    [
        (lambda: ops.stack(block, PARAMS, X, keep_every=4), ValueError, "keep_every=4 does not divide .* 6"),
        (lambda: ops.stack(block, PARAMS | {"b": PARAMS["b"][:2]}, X), ValueError, r"the same length, .* \[2, 6\]"),
        (lambda: ops.stack(block, PARAMS | {"b": 1.0}, X), ValueError, "one of them is a scalar"),
        (lambda: ops.stack(block, PARAMS, X, length=5), ValueError, r"the same length, .* \[5, 6\]"),
        (lambda: ops.stack(lambda p, x: x[:1], PARAMS, X), TypeError, r"the block must give what it takes, float32\[3, 4\]"),
        (lambda: ops.reversible(lambda p, x: x[:1], half, (PARAMS, PARAMS), (X, X)), TypeError, "reversible: f must give"),
        (lambda: ops.reversible(half, lambda p, x: (x, x), (PARAMS, PARAMS), (X, X)), TypeError, "reversible: g must give"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_said(call, error, says):
    with pytest.raises(error, match=says):
        call()
