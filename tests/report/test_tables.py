import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import fbp
from fbp.report import compare_gradients, gradient_table

REFERENCE = {"dense": {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array(2.0)}}


def test_equal_gradients_are_not_apart():
    bias, kernel = compare_gradients(REFERENCE, REFERENCE)
    assert bias == ("dense/bias", (), 2.0, 0.0, 0.0)
    assert kernel == ("dense/kernel", (1, 2), 5.0, 0.0, 0.0)


def test_the_distance_is_relative_to_the_largest_element():
    ours = jax.tree.map(lambda x: x + 0.5, REFERENCE)
    rows = compare_gradients(ours, REFERENCE)
    assert [row.relative for row in rows] == [0.25, 0.125]
    assert rows[1].norm == 5.0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_ulps_are_those_of_the_dtype(dtype):
    x = jnp.array([1.0, 0.25], dtype)
    (row,) = compare_gradients(x.at[1].add(3 * jnp.finfo(dtype).eps), x)
    assert row.ulps == 3.0


def test_a_gradient_that_is_not_finite_is_infinitely_far():
    (row,) = compare_gradients(jnp.array([1.0, jnp.nan]), jnp.array([1.0, 2.0]))
    assert row.relative == row.ulps == np.inf


def test_gradients_of_different_models_are_not_compared():
    with pytest.raises(ValueError):
        compare_gradients({}, REFERENCE)


def test_the_table_shows_a_row_for_each_parameter():
    ours = jax.tree.map(lambda x: x + 0.5, REFERENCE)
    console = Console(record=True, width=100)
    console.print(gradient_table(compare_gradients(ours, REFERENCE), "ours against theirs"))
    title, _, heading, _, bias, kernel, _ = console.export_text().splitlines()
    assert title.strip() == "ours against theirs"
    cells = [
        [cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")] for line in (heading, bias, kernel)
    ]
    assert cells[0] == ["parameter", "shape", "‖gradient‖", "relative", "ULPs"]
    assert cells[1][:4] == ["dense/bias", "", "2", "2.5e-01"]
    assert cells[2][:4] == ["dense/kernel", "1×2", "5", "1.2e-01"]


def test_the_table_of_fbp_against_jax():
    fun = lambda x: jnp.sum(jnp.tanh(x) ** 2)
    x = jnp.linspace(-2.0, 2.0, 9)
    (row,) = compare_gradients(fbp.grad(fun)(x), jax.grad(fun)(x))
    assert row.shape == (9,) and row.ulps <= 4
