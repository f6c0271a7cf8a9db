import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

import fbp
from fbp import ops
from fbp.recompute import Constant, Rerun, cheapest

KEEPING = fbp.RULES.recomputing([])
W, V, X = (jax.random.normal(rng, (8, 8)) for rng in jax.random.split(jax.random.key(0), 3))


def kept(fun, *xs, rules=fbp.RULES, what=lambda leaf: leaf.shape):
    """What the pullback of a staged function keeps beside the function's inputs: shapes."""
    leaves = []

    def staged(*xs):
        leaves.extend(jax.tree.leaves(fbp.vjp(fun, *xs, rules=rules)[1]))
        return [leaf for leaf in leaves if not any(leaf is x for x in xs)]

    return [what(leaf) for leaf in jax.eval_shape(staged, *xs)]


def count(primitive, fun, *xs):
    def inside(jaxpr):
        here = sum(eqn.primitive is primitive for eqn in jaxpr.eqns)
        return here + sum(inside(inner) for eqn in jaxpr.eqns for inner in jaxprs_in_params(eqn.params))

    return inside(jax.make_jaxpr(fun)(*xs).jaxpr)


def network(w, v, x):
    """One number of four bytes is enough to have the four that the rules read: u = x W, tanh of it, gelu u, and the mask."""
    return jnp.sum(jax.nn.relu(jax.nn.gelu(x @ w)) @ v)


def test_of_elementwise_results_only_what_they_came_from_is_kept():
    assert [shape for shape in kept(network, W, V, X) if shape] == [(8, 8)]
    assert len(kept(network, W, V, X, rules=KEEPING)) > 3
    assert count(lax.tanh_p, fbp.grad(network), W, V, X) == 2
    assert count(lax.tanh_p, fbp.grad(network, rules=KEEPING), W, V, X) == 1


def test_products_and_sums_are_not_computed_again():
    for primitive in (lax.dot_general_p, lax.reduce_sum_p):
        assert count(primitive, fbp.grad(network), W, V, X) == count(
            primitive, fbp.grad(network, rules=KEEPING), W, V, X
        )


@pytest.mark.parametrize("rules", [fbp.RULES, KEEPING], ids=["recomputing", "keeping"])
def test_gradients_are_the_same(rules):
    def deep(w, v, x):
        for _ in range(3):
            x = x + jax.nn.gelu(jax.nn.standardize(x) @ w) @ v
        return jnp.sum(x * jnp.where(x > 0, x, jnp.exp(x)))

    expected = jax.grad(deep, (0, 1, 2))(W, V, X)
    for transform in (lambda f: f, jax.jit):
        for a, b in zip(transform(fbp.grad(deep, (0, 1, 2), rules=rules))(W, V, X), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


def test_transformed_gradients_are_the_same():
    f = lambda w: network(w, V, X)
    slope = lambda grad: jax.jit(grad(lambda w: jnp.sum(grad(f)(w) ** 2)))(W)
    np.testing.assert_allclose(slope(fbp.grad), slope(jax.grad), rtol=1e-4, atol=1e-3)
    both = jnp.stack([W, V])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(fbp.grad(f)))(both), jax.jit(jax.vmap(jax.grad(f)))(both), rtol=1e-4, atol=1e-4
    )
    rows = lambda jacrev: jax.jit(jacrev(lambda w: jnp.tanh(jax.nn.gelu(X @ w) @ V)[0]))(W)
    np.testing.assert_allclose(rows(fbp.jacrev), rows(jax.jacrev), rtol=1e-4, atol=1e-4)


def test_what_is_computed_again_waits_for_the_cotangent():
    """Else the compiler finds it to be what the forward pass computed, and keeps that."""
    memory = {}
    for rules in (fbp.RULES, KEEPING):

        def deep(ws, x):
            for w in ws:
                x = x + jax.nn.gelu(x @ w) @ w.T
            return jnp.sum(x)

        ws, x = [jnp.ones((16, 64))] * 8, jnp.ones((512, 16))
        memory[rules] = jax.jit(fbp.grad(deep, rules=rules)).lower(ws, x).compile().memory_analysis().temp_size_in_bytes
    assert memory[fbp.RULES] < 0.7 * memory[KEEPING]


def test_a_mapped_cotangent_does_not_map_what_is_computed_again():
    def rows(w):
        y, pullback = fbp.vjp(lambda w: jax.nn.gelu(X @ w) @ V, w)
        return jax.vmap(pullback)(jnp.ones((5, *y.shape)))

    tanhs = [eqn for eqn in jax.make_jaxpr(rows)(W).eqns if eqn.primitive is lax.tanh_p]
    assert [eqn.outvars[0].aval.shape for eqn in tanhs] == [(8, 8)] * 2


def test_values_that_python_sees_are_kept():
    fun = lambda x: lax.sin(lax.exp(lax.tanh(x)))
    assert len(jax.tree.leaves(fbp.vjp(fun, X)[1])) == 2  # tanh x and exp(tanh x)
    assert kept(fun, X) == [(8, 8)]


def test_what_comes_of_arguments_alone_is_computed_once():
    """A short program has no memory to save: it would only take longer."""
    for fun, primitive in (
        (jax.nn.logsumexp, lax.exp_p),
        (jax.nn.sigmoid, lax.logistic_p),
        (jax.nn.softmax, lax.exp_p),
    ):
        assert count(primitive, lambda x, y_bar, fun=fun: fbp.vjp(fun, x)[1](y_bar), X, fun(X)) == 1


def test_a_weight_in_half_precision_is_made_again_of_the_argument():
    fun = lambda w, x: jnp.sum(x @ w.astype(jnp.bfloat16))
    assert kept(fun, W, X.astype(jnp.bfloat16)) == []


def test_a_replaced_rule_is_not_run_again():
    runs = []

    def forward(site, x, **params):
        runs.append(x)
        return lax.tanh(x), x

    rule = fbp.Rule(forward, lambda site, x, g, **_: [g * lax.cos(x)])
    rules = fbp.RULES | {lax.tanh_p: rule}
    jax.make_jaxpr(fbp.grad(lambda w: jnp.sum(jax.nn.gelu(X @ w) @ V), rules=rules))(W)
    assert len(runs) == 1


def test_an_effect_inside_of_a_call_is_not_repeated(capfd):
    @jax.jit
    def printing(x):
        jax.debug.print("once")
        return x * x

    jax.block_until_ready(jax.jit(fbp.grad(lambda w: jnp.sum(jnp.tanh(printing(X @ w)) @ V)))(W))
    jax.effects_barrier()
    assert capfd.readouterr().out == "once\n"


def test_in_a_loop_nothing_waits():
    """What the forward loop computed is not there in the reverse loop, with which the compiler could merge it."""
    layer = lambda h: jnp.exp(jnp.tanh(h @ W / 8)) @ V / 8
    for step in (layer, jax.jit(layer)):
        loop = lambda h, length, step=step: jnp.sum(lax.scan(lambda h, _: (step(h), None), h, length=length)[0])
        for length, waits in ((3, 0), (1, 1)):
            assert count(lax.lt_p, fbp.grad(lambda h, n=length, loop=loop: loop(h, n)), X) == waits
            np.testing.assert_allclose(fbp.grad(loop)(X, length), jax.grad(loop)(X, length), rtol=1e-4)


def test_the_choice_is_the_cheapest():
    def choose(wanted, sizes, *reruns):
        return cheapest(wanted, [Rerun(lambda *xs: xs, *rerun) for rerun in reruns], sizes.__getitem__)

    sizes = {0: 4, 1: 4, 2: 4, 3: 1, 4: 9}
    assert choose({1, 2}, sizes, ((0,), (1,)), ((0,), (2,))) == {0}  # two results of one value
    assert choose({1}, sizes, ((0,), (1,))) == {1}  # no gain: nothing is run again
    assert choose({3}, sizes, ((0, 1), (3,))) == {3}  # a mask is smaller than what was compared
    assert choose({4}, sizes, ((0, Constant(2.0)), (1,)), ((1, 3), (4,))) == {1, 3}
    assert choose({1, 0}, sizes, ((0,), (1,))) == {0}  # what has to be kept anyway costs nothing more
    assert choose({0}, sizes, ((0,), (0,))) == {0}  # an identity gives what it reads
    assert choose(set(), sizes, ((0,), (1,))) == set()


def test_of_few_large_values_only_is_computed_again():
    reruns = [Rerun(lambda *xs: xs[:1], (0, 1, 2), (3,))]
    assert cheapest([3], reruns, {0: 9, 1: 9, 2: 9, 3: 30}.__getitem__) == {0, 1, 2, 3}
    assert cheapest([3], reruns, {0: 9, 1: 1, 2: 1, 3: 30}.__getitem__) == {0, 1, 2}
    assert cheapest([3], reruns, {0: 90, 1: 9, 2: 9, 3: 99}.__getitem__, free={0}) == {0, 1, 2}


def test_to_compute_a_small_value_again_would_save_nothing_that_counts():
    sizes = {0: 1 << 20, 1: 8, 2: 16}
    rerun = Rerun(lambda x: [x], (1,), (2,))
    assert cheapest([0, 2], [rerun], sizes.__getitem__) == {0, 1}  # nothing larger is among what has a choice
    more = [rerun, Rerun(lambda x, y: [x], (0, 1), (3,))]
    assert cheapest([2, 3], more, (sizes | {3: 1 << 20}).__getitem__) == {2, 3}


def test_what_nothing_differentiated_went_into_is_computed_again_too():
    """A mask, broadcast to all heads, and images in bytes, made numbers of."""
    mask, images = jnp.tril(jnp.ones((8, 8), bool)), jnp.arange(64, dtype=jnp.uint8).reshape(8, 8)

    def attention(x, mask):
        scores = jnp.where(mask, jnp.einsum("hqd,hkd->hqk", x, x), -jnp.inf)
        return jnp.einsum("hqk,hkd->hqd", jax.nn.softmax(scores), x)

    def layer(w, images):
        return jnp.tanh(images.astype(jnp.float32) / 255 @ w)

    heads, is_mask = jnp.stack([W, V]), lambda leaf: leaf.dtype == bool and leaf.shape == (2, 8, 8)
    assert not any(kept(attention, heads, mask, what=is_mask))
    assert any(kept(attention, heads, mask, rules=KEEPING, what=is_mask))
    assert kept(layer, W, images) == [(8, 8)]  # tanh of it
    assert len(kept(layer, W, images, rules=KEEPING)) == 2
    for fun, x, known in ((attention, heads, mask), (layer, W, images)):
        loss = lambda x, known, fun=fun: jnp.sum(fun(x, known) ** 2)
        np.testing.assert_allclose(jax.jit(fbp.grad(loss))(x, known), jax.grad(loss)(x, known), rtol=1e-4, atol=1e-5)


def test_a_function_with_its_own_jvp_of_what_is_not_differentiated_is_called_once():
    both = jax.custom_jvp(lambda u: (jnp.sin(u), jnp.cos(u)))
    both.defjvp(lambda u, t: (both(*u), (jnp.cos(*u) * t[0], -jnp.sin(*u) * t[0])))

    def loss(w, x):
        a, b = both(x @ V)  # two for w_bar, of one
        return jnp.sum(jnp.tanh(a @ w) * (b @ w))

    np.testing.assert_allclose(jax.jit(fbp.grad(loss))(W, X), jax.grad(loss)(W, X), rtol=1e-4, atol=1e-5)


def test_what_jumps_is_kept():
    """x >= max x holds somewhere. It need not hold of an x that was computed again and rounded otherwise."""

    def largest(w, v, x):
        y = jnp.tanh(x @ w)
        return jnp.sum(jnp.where(y >= y.max(), y, jnp.floor(y) * y) @ v)

    assert ((8, 8), "bool") in kept(largest, W, V, X, what=lambda leaf: (leaf.shape, leaf.dtype.name))
    for primitive in (lax.ge_p, lax.floor_p):
        assert count(primitive, fbp.grad(largest), W, V, X) == 1
    assert count(lax.gt_p, fbp.grad(lambda x: jnp.sum(jax.nn.relu(jnp.tanh(x)) ** 2)), X) == 2  # with a constant
    np.testing.assert_allclose(fbp.grad(largest)(W, V, X), jax.grad(largest)(W, V, X), rtol=1e-5, atol=1e-6)


def test_one_wait_is_enough_for_what_is_computed_again():
    """tanh(x w + b): of x w, which is kept, and the broadcast b only the former waits for the cotangent."""

    def fun(w, b, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ w + b) * 2) @ W)

    assert count(lax.lt_p, fbp.grad(fun), W, V[0], X) == 1
    np.testing.assert_allclose(fbp.grad(fun)(W, V[0], X), jax.grad(fun)(W, V[0], X), rtol=1e-5, atol=1e-6)


def test_what_a_rule_says_how_to_compute_again_is_not_kept():
    """Of a batch norm between two convolutions its input and its statistics are, and neither its result nor the relu of it."""

    def fun(w, v, x):
        y, _, _ = ops.batch_norm(x @ w)
        return jnp.sum(jax.nn.relu(y) @ v)

    assert sorted(kept(fun, W, V, X)) == [(1, 8), (1, 8), (8, 8)]
    assert kept(fun, W, V, X, rules=KEEPING).count((8, 8)) > 1
    for a, b in zip(fbp.grad(fun, (0, 1))(W, V, X), jax.grad(fun, (0, 1))(W, V, X), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_largest_has_the_cotangent_however_it_is_rounded_when_it_is_computed_again():
    def fun(x):
        y = jnp.exp(jnp.sin(x)) * x + x * x
        return jnp.sum(jnp.max(y, 1) * y[:, 0] + jnp.maximum(y[:, 1], y[:, 2] ** 2))

    for seed in range(3):
        x = jax.random.normal(jax.random.key(seed), (64, 8))
        np.testing.assert_allclose(jax.jit(fbp.grad(fun))(x), jax.jit(jax.grad(fun))(x), rtol=2e-4, atol=1e-4)


def test_a_function_with_its_own_jvp_is_run_again():
    """jax.nn.relu is one; and may be called but once where it is mapped."""
    fun = lambda x, w=W, v=V: jnp.sum(jax.nn.relu(x @ w) @ v)
    assert kept(fun, X, W, V) == [(8, 8)]
    assert len(kept(fun, X, W, V, rules=KEEPING)) == 2  # its mask, and relu(x W)
    batch = jnp.stack([X, -X])
    mapped = lambda grad: jax.jit(grad(lambda x: jnp.sum(jax.vmap(fun)(x))))(batch)
    np.testing.assert_allclose(mapped(fbp.grad), mapped(jax.grad), rtol=1e-5, atol=1e-5)


def test_what_a_function_with_its_own_jvp_closes_over_stays_where_it_is():
    def scaled(x, scale):
        fun = jax.custom_jvp(lambda x: x * scale)
        fun.defjvp(lambda x, t: (x[0] * scale, t[0] * scale))
        return fun(x)

    loss = lambda x, scale: jnp.sum(scaled(x @ W, scale) @ V)
    forward = jax.jit(lambda x, scale: fbp.vjp(lambda x: loss(x, scale), x))
    _, pullback = forward(X, jnp.float32(3))
    np.testing.assert_allclose(pullback(1.0)[0], jax.grad(loss)(X, 3.0), rtol=1e-4, atol=1e-4)
