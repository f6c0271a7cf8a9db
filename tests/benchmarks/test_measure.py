"""The benchmark measures what it says. (How long things take is no test; `scripts/bench` says that.)"""

import math

import jax
import jax.numpy as jnp
import pytest
import tyro

import fbp
from benchmarks import __main__ as bench
from benchmarks import accelerator, drop_in, operations, programs
from benchmarks.measure import Measured, Program, Result, Variant, geometric_mean, measure, product_flops
from fbp.check.compare import relative_error

X = jnp.linspace(0.0, 1.0, 64).reshape(8, 8)
BATCH = (X,)


def loss(w, x):
    return jnp.sum(jnp.tanh(x @ w) ** 2)


def renamed(params, x):
    return loss(params["kernel"], x)


VARIANTS = {
    "jax.grad": Variant(jax.value_and_grad(loss), X, BATCH),
    "jax.grad of fbp.nn": Variant(jax.value_and_grad(renamed), {"kernel": X}, BATCH, lambda grad: [grad["kernel"]]),
    "fbp.grad": Variant(fbp.value_and_grad(loss), X, BATCH),
    "wrong": Variant(lambda w, x: (loss(w, x), 2 * jax.grad(loss)(w, x)), X, BATCH),
    "PyTorch": Variant(lambda *_: (0.0, []), None, (), None, jitted=False),
}


def test_variants_are_measured_side_by_side():
    result = measure(Program(loss, VARIANTS), seconds=0.01, compiles=1)
    assert list(result.variants) == list(VARIANTS) and result.ratio("jax.grad") == 1
    differences = {name: measured.difference for name, measured in result.variants.items()}
    assert differences["fbp.grad"] < 1e-6 and differences["wrong"] == pytest.approx(1)
    assert differences["jax.grad of fbp.nn"] == 0 and differences["PyTorch"] is None
    low, high = result.spread("fbp.grad")
    assert 0 < low <= high and result.forward > 0
    *jitted, eager = result.variants.values()
    assert all(measured.trace > 0 and measured.compile > 0 for measured in jitted)
    assert eager.step > 0 and eager.compile is None and math.isnan(result.ratio("PyTorch", "memory"))
    lines = bench.rows("case", result).split("\n")
    assert len(lines) == 5 and lines[0].startswith("case") and all(len(line) <= 120 for line in lines)
    said = bench.summary("part", {"case": result})
    assert "part: fbp.grad / jax.grad, geometric mean of 1 cases: step time" in said and "PyTorch" in said


def test_geometric_mean():
    assert geometric_mean([0.5, 2.0, 1.0]) == pytest.approx(1.0)


def test_a_case_that_is_not_there_is_an_error_that_names_those_that_are(capsys):
    assert bench.main(tyro.cli(bench.Options, args=["mlp", "mpl"])) == 2
    error = capsys.readouterr().err
    assert "no case mpl" in error and "transformer-48" in error


@pytest.mark.parametrize("name", ["mobilenet", "nnx-transformer", "plain-transformer-12", "transformer-12-scan"])
def test_the_programs_have_a_gradient(name):
    for variant in drop_in.CASES[name]().variants.values():
        loss, gradient = jax.eval_shape(variant.step, variant.params, *variant.batch)
        assert loss.shape == () and jax.tree.structure(gradient) == jax.tree.structure(variant.params)


@pytest.mark.parametrize("name", operations.CASES)
def test_an_operation_gives_its_result_and_the_cotangent_of_its_first_argument(name):
    with jax.numpy_dtype_promotion("standard"):
        program = operations.CASES[name]()
    for variant in program.variants.values():
        with jax.numpy_dtype_promotion("standard"):  # Flax's own code mixes dtypes
            y, x_bar = jax.eval_shape(variant.step, variant.params, *variant.batch)
        assert x_bar.shape == variant.params.shape and y.shape == variant.batch[0].shape


@pytest.mark.parametrize("name", programs.CASES)
def test_programs_of_many_fields_have_a_gradient(name):
    with jax.numpy_dtype_promotion("standard"):
        for variant in programs.CASES[name]().variants.values():
            loss, gradient = jax.eval_shape(variant.step, variant.params, *variant.batch)
            assert loss.shape == () and jax.tree.structure(gradient) == jax.tree.structure(variant.params)


# Half precision; and of a million relus of a residual net, one or two have an input within rounding of 0.
ROUNDED = {"decoder-bfloat16": 5e-2, "bottlenecks": 2e-2}


@pytest.mark.slow
@pytest.mark.parametrize("name", programs.CASES)
def test_programs_of_many_fields_agree(name):
    with jax.numpy_dtype_promotion("standard"):
        steps = programs.CASES[name]().variants
        (loss, gradient), (their_loss, theirs) = (
            jax.jit(steps[name].step)(steps[name].params, *steps[name].batch) for name in ("fbp.grad", "jax.grad")
        )
    assert relative_error(loss, their_loss) < ROUNDED.get(name, 1e-5)
    for ours, their_leaf in zip(jax.tree.leaves(gradient), jax.tree.leaves(theirs), strict=True):
        assert relative_error(ours, their_leaf, theirs) < ROUNDED.get(name, 5e-5)


def test_memory_that_is_none_to_speak_of_has_no_ratio():
    little, more = (Measured(1.0, (1.0,), 1.0, 1.0, memory, 1, 0.0) for memory in (100, 1 << 20))
    assert math.isnan(Result({"jax.grad": little, "fbp.grad": more}, 1.0, 1).ratio("fbp.grad", "memory"))
    assert Result({"jax.grad": more, "fbp.grad": little}, 1.0, 1).ratio("fbp.grad", "memory") == 100 / (1 << 20)


def test_products_are_counted_inside_of_loops_and_calls():
    x, kernel = jnp.ones((2, 5, 5, 4)), jnp.ones((3, 3, 2, 6))

    def program(w, x, kernel):
        y, _ = jax.lax.scan(lambda y, _: (jax.jit(jnp.dot)(y, w), None), jnp.ones((3, 8)), length=10)
        conv = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", feature_group_count=2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y, conv

    counted = product_flops(jax.make_jaxpr(program)(jnp.ones((8, 8)), x, kernel))
    assert counted == 10 * 2 * 3 * 8 * 8 + 2 * (2 * 3 * 3 * 6) * (3 * 3 * 2)


def test_a_program_in_bfloat16_is_compared_in_it():
    program = accelerator.with_dtype(
        Program(loss, {name: VARIANTS[name] for name in ("jax.grad", "fbp.grad")}), "bfloat16"
    )
    result = measure(program, seconds=0.01, compiles=1)
    assert {v.params.dtype.name for v in program.variants.values()} == {"bfloat16"}
    assert result.flops == 2 * 8**3 and result.variants["fbp.grad"].difference < 1e-2


def test_the_large_programs_have_cases_of_their_own_names():
    names = {*accelerator.cases("bfloat16")}
    assert len(names) == 15 and all(name.startswith("large-") for name in names)
