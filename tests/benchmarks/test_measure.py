"""The benchmark measures what it says. (How long things take is no test; `scripts/bench` says that.)"""

import jax
import jax.numpy as jnp
import pytest
import tyro

import fbp
from benchmarks import __main__ as bench
from benchmarks import drop_in
from benchmarks.measure import Program, geometric_mean, measure

X = jnp.linspace(0.0, 1.0, 64).reshape(8, 8)
PROGRAM = Program(lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2), X, (X,))


def test_variants_are_measured_side_by_side():
    wrong = lambda w, x: (PROGRAM.loss(w, x), 2 * jax.grad(PROGRAM.loss)(w, x))
    variants = {
        "jax.grad": jax.value_and_grad(PROGRAM.loss),
        "fbp.grad": fbp.value_and_grad(PROGRAM.loss),
        "wrong": wrong,
    }
    result = measure(variants, PROGRAM, seconds=0.01, compiles=1)
    assert set(result.variants) == set(variants) and result.ratio("jax.grad") == 1
    assert result.variants["fbp.grad"].difference < 1e-6 and result.variants["wrong"].difference == pytest.approx(1)
    low, high = result.spread("fbp.grad")
    assert 0 < low <= high and result.forward > 0
    assert all(measured.trace > 0 and measured.compile > 0 for measured in result.variants.values())
    lines = bench.rows("case", result).split("\n")
    assert len(lines) == 3 and lines[0].startswith("case") and all(len(line) <= 120 for line in lines)


def test_geometric_mean():
    assert geometric_mean([0.5, 2.0, 1.0]) == pytest.approx(1.0)


def test_a_case_that_is_not_there_is_an_error_that_names_those_that_are(capsys):
    assert bench.main(tyro.cli(bench.Options, args=["mlp", "mpl"])) == 2
    error = capsys.readouterr().err
    assert "no case mpl" in error and "transformer-48" in error


@pytest.mark.parametrize("name", ["mobilenet", "nnx-transformer", "transformer-12-scan"])
def test_the_programs_have_a_gradient(name):
    program = drop_in.CASES[name]()
    loss, gradient = jax.eval_shape(fbp.value_and_grad(program.loss), program.params, *program.batch)
    assert loss.shape == () and jax.tree.structure(gradient) == jax.tree.structure(program.params)
