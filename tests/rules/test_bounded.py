import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fbp
from fbp.check.cases.bounded import CASES
from fbp.check.suite import check_case

SLOW = {"while_loop/nested"}  # twenty seconds; `scripts/check` has it, too


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] if case.name in SLOW else []) for case in CASES],
    ids=lambda case: case.name,
)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def decay(x, **options):
    """Halves until it is small: seven times for 100, and the gradient is 2⁻⁷."""
    return fbp.while_loop(lambda y: y > 1, lambda y: y / 2, x, **options)


def test_it_takes_the_steps_of_the_loop():
    assert float(decay(100.0, max_steps=50)) == 100 / 2**7
    assert float(fbp.grad(decay)(100.0, max_steps=50)) == 2**-7
    assert float(jax.jit(fbp.grad(lambda x: decay(x, max_steps=50)))(100.0)) == 2**-7


def test_it_stops_after_max_steps():
    assert float(decay(100.0, max_steps=3)) == 100 / 2**3
    assert float(fbp.grad(decay)(100.0, max_steps=3)) == 2**-3
    assert float(fbp.grad(decay)(100.0, max_steps=0)) == 1


def test_memory_is_bounded_by_the_square_root_of_the_steps():
    x = jnp.linspace(0, 1, 8)
    loop = lambda x: fbp.while_loop(lambda y: jnp.sum(y) < 1e9, lambda y: jnp.sin(y) + y, x, max_steps=10_000)
    kept = jax.tree.leaves(fbp.vjp(loop, x)[1])
    assert sum(r.size for r in kept) <= 100 * x.size + 1
    compiled = jax.jit(fbp.grad(lambda x: jnp.sum(loop(x)))).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * (2 * 100 * x.nbytes)


def test_a_rule_reaches_inside():
    doubled = fbp.RULES | {jax.lax.sin_p: fbp.table(lambda g, x: 2 * g * jax.lax.cos(x))}
    once = lambda x: fbp.while_loop(lambda s: s[1] < 1, lambda s: (jnp.sin(s[0]), s[1] + 1), (x, 0), max_steps=4)[0]
    np.testing.assert_allclose(fbp.grad(once, rules=doubled)(0.3), 2 * np.cos(0.3), rtol=1e-6)


def test_weakly_typed_state():
    x, n = jax.eval_shape(
        lambda x: fbp.while_loop(lambda s: s[1] < 3, lambda s: (s[0] * x, s[1] + 1), (1.0, 0), max_steps=5), 2.0
    )
    assert (x.dtype, n.dtype) == (jnp.float32, jnp.int32)


def test_bad_input():
    more, step = lambda x: x > 0, lambda x: x - 1
    with pytest.raises(TypeError, match=r"max_steps is the largest number of steps, an integer .* got 2\.5"):
        fbp.while_loop(more, step, 1.0, max_steps=2.5)
    with pytest.raises(ValueError, match="max_steps is the largest number of steps, but got -1"):
        fbp.while_loop(more, step, 1.0, max_steps=-1)
    with pytest.raises(TypeError, match="cond_fun must return a boolean scalar"):
        fbp.while_loop(step, step, 1.0, max_steps=3)
    with pytest.raises(TypeError, match="body function carry input and carry output"):
        fbp.while_loop(more, lambda x: (x, x), 1.0, max_steps=3)
