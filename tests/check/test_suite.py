import functools
import importlib
import pathlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import fbp
from fbp import rules
from fbp.check import suite
from fbp.check.case import Case, normal
from fbp.check.suite import DTYPES, applies, chapters, check_case, primitives_of

ALL = [(name, case) for name, cases in chapters().items() for case in cases]
# The chapters of rules are compared in float64 by tests/rules/, the layers by tests/nn/, the operations by tests/ops/; this
# is all that scripts/check runs.
REST = [
    pytest.param(case, dtype, id=f"{name}-{case.name}-{dtype}", marks=pytest.mark.slow)
    for name, case in ALL
    for dtype in DTYPES
    if applies(case, dtype) and (name == "layers" or dtype != "float64")
]


@pytest.mark.parametrize("case, dtype", REST)
def test_agrees_with_jax(case, dtype):
    check_case(case, dtype)


NO_CHAPTERS = {
    "carried",
    "choices",
    "common",
    "foreign",
    "residuals",
    "staging",
    "sums",
}  # of fbp/rules: what the chapters use
NO_RULES = {"layers", "ops"}  # cases of what stands on the rules


def test_every_chapter_of_rules_has_cases():
    names = {module.name for module in pkgutil.iter_modules(rules.__path__)} - NO_CHAPTERS
    assert names | NO_RULES == set(chapters())


@pytest.mark.parametrize("name", sorted(set(chapters()) - NO_RULES))
def test_every_rule_has_a_case_in_its_chapter(name):
    met = set().union(*(primitives_of(case) for case in chapters()[name]))
    assert not {str(p) for p in importlib.import_module(f"fbp.rules.{name}").RULES if p not in met}


@pytest.mark.parametrize("name", sorted(set(chapters()) - NO_RULES))
def test_the_cases_of_a_chapter_are_among_its_tests(name):
    tests = pathlib.Path(__file__).parents[1] / "rules" / f"test_{name}.py"
    assert f"from fbp.check.cases.{name} import CASES" in tests.read_text()


def test_names_of_cases_are_unique():
    names = [(name, case.name) for name, case in ALL]
    assert len(set(names)) == len(names)


SIN = Case("sin", lambda x, y: jnp.sin(x) * y, (normal(3), normal(3)))


def failures(monkeypatch, rule, case=SIN, dtype="float64"):
    """What the suite says of a case under a changed rule for sin."""
    monkeypatch.setattr(suite, "vjp", functools.partial(fbp.vjp, rules=fbp.RULES | {lax.sin_p: rule}))
    return [text.split(":")[0] for text in suite.run_case(case, dtype).failures]


def test_a_wrong_rule_is_found_by_every_check(monkeypatch):
    found = failures(monkeypatch, fbp.table(lambda g, x: g * (1 + 1e-6) * lax.cos(x)))
    assert set(found) == {"jit", "eager", "masks", "adjoint", "vmap", "second order"}
    with pytest.raises(AssertionError, match=r"sin in float64: jit: x_bar\[0\] is off by 1.0e-06 relative"):
        check_case(SIN, "float64")


def test_a_rule_that_is_wrong_in_single_precision_only_is_found(monkeypatch):
    coarse = fbp.table(lambda g, x: g * lax.cos(x.astype(jnp.float16)).astype(x.dtype))
    assert failures(monkeypatch, coarse, dtype="float32") == ["jit"]


def test_a_residual_that_nobody_reads_is_found(monkeypatch):
    wasteful = fbp.Rule(
        lambda site, x, **_: (lax.sin(x), (x, lax.exp(x))), lambda site, kept, g, **_: [g * lax.cos(kept[0])]
    )
    assert failures(monkeypatch, wasteful) == ["residuals"]


def test_a_tracer_that_outlives_its_trace_is_found(monkeypatch):
    def forward(site, x, **_):
        forward.seen = x
        return lax.sin(x), x

    leaky = fbp.Rule(forward, lambda site, x, g, **_: [g * lax.cos(x)])
    assert failures(monkeypatch, leaky) == ["leaks"]


def test_a_wrong_second_derivative_is_found(monkeypatch):
    cos_of = jax.custom_jvp(lax.cos)
    cos_of.defjvp(lambda x, t: (lax.cos(*x), 2 * t[0]))
    assert failures(monkeypatch, fbp.table(lambda g, x: g * cos_of(x))) == ["second order"]


def test_a_cotangent_of_another_dtype_is_found(monkeypatch):
    monkeypatch.setattr(suite, "vjp", lambda fun, *xs: (None, lambda y_bars: [jnp.zeros(3, jnp.float16) for _ in xs]))
    assert "is float16[3], not float32[3]" in suite.run_case(SIN, "float32").failures[0]
