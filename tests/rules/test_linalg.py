import jax
import jax.numpy as jnp
import pytest
from jax.lax import linalg

import fbp
from fbp.check.cases.linalg import CASES
from fbp.check.suite import check_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def test_a_factorization_keeps_its_factors_only():
    x = jnp.array([[2.0, 0.5], [0.5, 1.0]])
    kept = lambda fun: [r.shape for r in jax.tree.leaves(fbp.vjp(fun, x)[1]) if r.dtype == x.dtype]
    assert kept(lambda x: linalg.cholesky(x, symmetrize_input=False)) == [(2, 2)]
    assert kept(lambda x: linalg.triangular_solve(jnp.eye(2), x, left_side=True)) == [(2, 2)]
    assert kept(lambda x: jnp.linalg.svd(x, compute_uv=False)) == [(2, 2), (2, 2)]


@pytest.mark.parametrize(
    "fun, what",
    [
        (lambda x: linalg.svd(x, full_matrices=True)[0], "'svd'.*full_matrices=False"),
        (lambda x: linalg.eig(x[:2])[1], "'eig'.*enable_eigvec_derivs=True"),
    ],
)
def test_what_jax_does_not_differentiate_is_refused(fun, what):
    x = jnp.array([[2.0, 0.5], [0.3, 1.0], [0.0, 1.0]])
    with pytest.raises(NotImplementedError, match=what):
        fbp.vjp(fun, x)
    with pytest.raises(NotImplementedError):
        jax.vjp(fun, x)
