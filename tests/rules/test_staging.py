import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import primitives as p

from fbp.rules.staging import needed_for, read, run, variables, without_calls


@pytest.fixture
def staged():
    def fun(x, y):
        a = jnp.sin(x)
        return a * y, jnp.cos(y), jnp.tanh(a)

    return jax.make_jaxpr(fun)(1.0, 2.0).jaxpr


def names(eqns):
    return [eqn.primitive.name for eqn in eqns]


def test_run_adds_the_results_of_the_equations(staged):
    values = dict(zip(staged.invars, [0.5, 2.0], strict=True))
    run(staged.eqns, values)
    assert read(values, staged.outvars) == [jnp.sin(0.5) * 2.0, jnp.cos(2.0), jnp.tanh(jnp.sin(0.5))]


def test_literals_are_read_as_their_values():
    jaxpr = jax.make_jaxpr(lambda x: (x, 3.0))(1.0).jaxpr
    assert variables(jaxpr.outvars) == jaxpr.invars
    assert read({jaxpr.invars[0]: 7.0}, jaxpr.outvars) == [7.0, 3.0]


def test_what_is_needed_for_a_value(staged):
    x, y = staged.invars
    chosen, starts, missing = needed_for(staged.outvars[1:2], staged.eqns)
    assert (names(chosen), starts, missing) == (["cos"], [], {y})
    chosen, _, missing = needed_for(staged.outvars[2:], staged.eqns)
    assert (names(chosen), missing) == (["sin", "tanh"], {x})


def test_what_is_given_is_where_it_begins(staged):
    is_sin = lambda eqn: eqn.primitive is p.sin_p
    chosen, starts, missing = needed_for(staged.outvars[:1], staged.eqns, is_sin)
    assert (names(chosen), starts, missing) == (["mul"], list(staged.eqns[0].outvars), {staged.invars[1]})


def test_the_equations_of_a_jitted_function_take_its_place():
    inner = jax.jit(lambda x: jax.jit(jnp.sin)(x) * 2.0)
    staged = jax.make_jaxpr(lambda x: inner(x) + 1.0)(1.0)
    flat = jax.make_jaxpr(without_calls(staged))(1.0)
    assert names(staged.eqns) == ["jit", "add"]
    assert names(flat.eqns) == ["sin", "mul", "add"]
