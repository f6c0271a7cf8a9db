import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import checkpoint_policies as policies
from jax.ad_checkpoint import checkpoint_name

import fbp
from fbp.check.cases.remat import CASES
from fbp.check.suite import check_case

X = jnp.array([0.5, -1.0])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def kept(fun, *xs):
    return jax.tree.leaves(fbp.vjp(fun, *xs)[1])


def test_remat_keeps_its_inputs_only():
    fun = lambda x, y: jnp.tanh(jnp.tanh(x) * y)
    assert [x is X for x in kept(lambda x: jax.checkpoint(fun)(x, x), X)] == [True]
    barriers = str(jax.make_jaxpr(fbp.grad(lambda x: jnp.sum(jax.checkpoint(fun)(x, x))))(X)).count(
        "optimization_barrier"
    )
    assert barriers == 1


def test_an_input_that_the_backward_pass_does_not_read_is_not_kept():
    bias = jnp.ones(2)
    assert [x is X for x in kept(jax.checkpoint(lambda x, b: jnp.sin(x) + b), X, bias)] == [True]


@pytest.mark.parametrize(
    "policy, shapes",
    [
        (None, [(4, 3), (5, 4)]),
        (policies.nothing_saveable, [(4, 3), (5, 4)]),
        (policies.save_only_these_names("hidden"), [(4, 3), (5, 4), (5, 3)]),
        (policies.dots_saveable, [(4, 3), (5, 4), (5, 3)]),
    ],
)
def test_what_the_policy_saves_is_kept_as_by_jax(policy, shapes):
    def fun(w, x):
        return jnp.sum(jnp.sin(checkpoint_name(x @ w, "hidden") * 2.0))

    w, x = jnp.ones((4, 3)), jnp.ones((5, 4))
    ours = [x.shape for x in kept(jax.checkpoint(fun, policy=policy), w, x)]
    theirs = [x.shape for x in jax.tree.leaves(jax.vjp(jax.checkpoint(fun, policy=policy), w, x)[1])]
    assert sorted(ours) == sorted(theirs)
    assert sorted(ours) == sorted(shapes)


def test_an_effect_takes_place_once(capfd):
    def fun(x):
        jax.debug.print("forward {}", x[0])
        return jnp.sum(jnp.sin(jnp.sin(x)))

    gradient = fbp.grad(jax.checkpoint(fun))(X)
    jax.effects_barrier()
    assert capfd.readouterr().out == "forward 0.5\n"
    np.testing.assert_allclose(gradient, jax.grad(fun)(X), rtol=1e-6)


def test_equal_blocks_are_split_once():
    """The rules run once for the four of them."""
    applied = []
    sin = fbp.RULES[jax.lax.sin_p]

    def forward(site, x, **params):
        applied.append(site)
        return sin.fwd(site, x, **params)

    counted = fbp.RULES | {jax.lax.sin_p: fbp.Rule(forward, sin.bwd)}
    block = jax.checkpoint(lambda x: jnp.sin(x) * 2)
    jax.make_jaxpr(fbp.grad(lambda x: jnp.sum(block(block(block(block(x))))), rules=counted))(X)
    assert len(applied) == 1
