import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.check.compare import GradientMismatch, relative_error, ulps

PARAMS = {"w": jnp.array([[0.5], [-0.2]]), "b": jnp.zeros(1), "n": 3}


def loss(params, x):
    return jnp.mean(jnp.sin(x @ params["w"] + params["b"])), params["n"]


def test_a_gradient_that_agrees_gives_a_table():
    table = fbp.check_grads(loss, PARAMS, jnp.ones((3, 2)))
    assert [(row.leaf, row.shape, row.dtype) for row in table.rows if row.dtype == "float32"] == [
        ("[0]['b']", (1,), "float32"),
        ("[0]['w']", (2, 1), "float32"),
        ("[1]", (3, 2), "float32"),
    ]
    assert all(row.agrees for row in table.rows) and len(str(table).splitlines()) == 7


def test_a_wrong_rule_is_found_leaf_by_leaf():
    wrong = fbp.RULES | {lax.sin_p: fbp.table(lambda g, x: g)}
    with pytest.raises(
        GradientMismatch, match=r"6 of 6 comparisons differ:\nleaf(?s:.*)\[0\]\['w'\]  2x1    float64"
    ) as info:
        fbp.check_grads(loss, PARAMS, jnp.ones((3, 2)), rules=wrong)
    assert "<- differs" in str(info.value) and not any(row.agrees for row in info.value.table.rows)


def test_finite_differences_find_what_both_believe():
    double = jax.custom_vjp(lambda x: x * x)
    double.defvjp(lambda x: (x * x, x), lambda x, g: (g * x,))
    with pytest.raises(GradientMismatch) as info:
        fbp.check_grads(double, 3.0)
    exact, single = info.value.table.rows
    assert exact.relative == 0 and exact.finite_differences > 0.5 and not exact.agrees and single.agrees


def test_complex_leaves_are_compared():
    fbp.check_grads(lambda x: jnp.abs(x * x) + jnp.real(x), jnp.array([1 + 2j, -0.5j]))


def test_there_must_be_something_to_differentiate():
    with pytest.raises(TypeError, match="no argument has a real or complex leaf"):
        fbp.check_grads(lambda n: n, 3)


@pytest.mark.parametrize(
    "a, b, of, relative, last_places",
    [
        ([1.0, 2.0], [1.0, 2.0], None, 0, 0),
        ([1.0, 2.0 + 2**-22], [1.0, 2.0], None, 2**-23, 1),
        ([0.0, 2.0 + 2**-22], [0.0, 2.0], [8.0], 2**-25, 0.25),
        ([np.nan, np.inf], [np.nan, np.inf], None, 0, 0),
        ([np.nan, 1.0], [1.0, 1.0], None, np.inf, np.inf),
        ([1.0], [0.0], None, np.inf, np.inf),
        ([], [], None, 0, 0),
    ],
)
def test_errors_of_known_size(a, b, of, relative, last_places):
    a, b, of = np.float32(a), np.float32(b), None if of is None else np.float32(of)
    if relative == np.inf:
        assert relative_error(a, b, of) > 1e300 and ulps(a, b, of) > 1e30
    else:
        assert relative_error(a, b, of) == relative and ulps(a, b, of) == last_places
