"""What holds for the source as a whole: which room may know which, and whose reverse mode it is."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax._src.interpreters import ad

import fbp

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(p.relative_to(ROOT) for folder in ("fbp", "experiments") for p in (ROOT / folder).rglob("*.py"))
REVERSE_MODE = {"vjp", "grad", "value_and_grad", "linearize", "linear_transpose", "custom_vjp", "jacrev", "hessian"}

MAY_IMPORT = {
    "_compat": set(),
    "core": set(),
    "chains": {"_compat", "core"},
    "recompute": {"chains", "core"},
    "references": {"_compat", "core"},
    "engine": {"_compat", "chains", "core", "recompute", "references"},
    "rules": {"_compat", "core"},
    "api": {"_compat", "core", "engine", "rules"},
    "ops": {"core", "recompute", "rules"},
    "nn": {"core", "api", "ops"},
    "check": {"_compat", "core", "api", "rules", "ops", "nn"},
    "report": {"core", "api", "check"},
    "train": {"core", "api", "rules", "nn"},
    "experiments": {"", "ops", "nn", "train", "report", "check"},
}


def room(path: pathlib.Path) -> str:
    return path.parts[0] if path.parts[0] == "experiments" else path.with_suffix("").parts[1]


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names of all that a file imports: "jax.numpy", "fbp.core.Rule"."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", [p for p in FILES if p != pathlib.Path("fbp/__init__.py")], ids=str)
def test_imports_only_go_down(path):
    known = MAY_IMPORT[room(path)] | {room(path)}
    rooms = {(name + ".").split(".")[1] for name in imports(path) if name.split(".")[0] == "fbp"}
    assert rooms <= known, f"{path} imports {rooms - known}"


def test_what_is_not_public_in_jax_is_met_in_one_place():
    assert [str(p) for p in FILES if "jax._src" in (ROOT / p).read_text()] == ["fbp/_compat.py"]


def test_core_needs_jax_alone():
    for path in FILES:
        if room(path) in ("_compat", "core", "recompute", "engine", "rules"):
            packages = {name.split(".")[0] for name in imports(path)}
            assert not packages & {"optax", "flax", "rich", "matplotlib", "orbax"}, path


@pytest.mark.parametrize(
    "path", [p for p in FILES if room(p) in ("_compat", "core", "recompute", "engine", "rules")], ids=str
)
def test_the_reverse_mode_is_ours(path):
    tree = ast.parse((ROOT / path).read_text())
    named = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("jax", "ad")
    }
    imported = {name.split(".")[-1] for name in imports(path) if name.split(".")[0] == "jax"}
    assert not (named | imported) & REVERSE_MODE


def test_the_reverse_mode_is_ours_when_it_runs(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("JAX's reverse mode was called")

    @jax.custom_vjp
    def doubled(x):
        return x

    doubled.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))

    @jax.jit
    def model(x):
        def step(h, x):
            return jax.nn.relu(doubled(jnp.tanh(h * x))), jnp.sum(h)

        h, ys = jax.lax.scan(step, jnp.ones((1, 4, 4, 1)), x)
        image = jax.lax.conv(h.transpose(0, 3, 1, 2), jnp.ones((1, 1, 2, 2)), (1, 1), "SAME")
        return jax.nn.logsumexp(jax.checkpoint(jnp.sin)(image)) + jnp.sum(ys)

    x = jnp.linspace(0.1, 1.0, 3)
    expected = jax.grad(model)(x)
    for name in ("vjp", "grad", "value_and_grad", "linearize", "linear_transpose"):
        monkeypatch.setattr(jax, name, refuse)
    inner = [
        name for name in ("backward_pass", "backward_pass3", "linearize", "linearize_jaxpr", "vjp") if hasattr(ad, name)
    ]
    assert inner
    for name in inner:
        monkeypatch.setattr(ad, name, refuse)
    assert jnp.allclose(fbp.grad(model)(x), expected, rtol=1e-5)


UNTESTED_BY_NAME = {
    "fbp/_compat.py": "by every test, on each version of JAX",
    "fbp/check/case.py": "by the suite",
    "fbp/rules/choices.py": "by tests/rules/test_convolutions.py",
    "fbp/ops/common.py": "by the chapters that use it",
    "fbp/rules/common.py": "by the chapters that use it",
    "fbp/rules/residuals.py": "by tests/rules/test_calls.py and test_loops.py",
}


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if "cases" not in p.parts and not p.name.startswith("__") and p.parts[0] == "fbp"],
    ids=str,
)
def test_tests_mirror_the_source(path):
    mirrored = ROOT / "tests" / pathlib.Path(*path.parts[1:-1]) / f"test_{path.name}"
    assert str(path) in UNTESTED_BY_NAME or mirrored.exists()


@pytest.mark.parametrize(
    "name",
    [
        "vjp",
        "grad",
        "value_and_grad",
        "jacrev",
        "hessian",
        "table",
        "Rule",
        "Site",
        "Rulebook",
        "check_grads",
        "as_custom_vjp",
    ],
)
def test_public_names_are_documented(name):
    assert name in fbp.__all__ and getattr(fbp, name).__doc__
