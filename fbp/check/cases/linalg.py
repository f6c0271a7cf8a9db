"""Cases for `fbp.rules.linalg`. Matrices are well conditioned, with distinct eigenvalues and singular values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import linalg

from fbp.check.case import Case, Maker, normal

# LAPACK computes in two precisions only. In float32 an inverse and what follows from it is a few dozen ULPs from another.
Case = functools.partial(Case, low=False, ulps=256)


def square(n: int, *batch: int, spread: float = 1.0) -> Maker:
    """A random matrix with singular values 1, 1 + spread, 1 + 2 spread, ..."""

    def make(rng, dtype):
        def orthogonal():
            x = rng.standard_normal((*batch, n, n))
            if np.issubdtype(dtype, np.complexfloating):
                x = x + 1j * rng.standard_normal((*batch, n, n))
            return np.linalg.qr(x)[0]

        return (orthogonal() * (1 + spread * np.arange(n)) @ orthogonal()).astype(dtype)

    return make


def positive(n: int, *batch: int) -> Maker:
    """A random positive definite matrix with eigenvalues 1, 2, 3, ..."""

    def make(rng, dtype):
        u = np.linalg.svd(square(n, *batch)(rng, dtype))[0]
        return (u * (1 + np.arange(n)) @ u.conj().swapaxes(-1, -2)).astype(dtype)

    return make


def solved(**options):
    return functools.partial(linalg.triangular_solve, **options)


def hermitian(x):
    return (x + jnp.conj(jnp.swapaxes(x, -1, -2))) / 2


def eigh(x):
    """Eigenvalues, and what does not depend on the phase of the eigenvectors."""
    v, w = linalg.eigh(hermitian(x), symmetrize_input=False)
    return w, jnp.abs(v), (v * jnp.sin(w)[..., None, :].astype(v.dtype)) @ jnp.conj(jnp.swapaxes(v, -1, -2))


def svd(x):
    """Singular values, and what does not depend on the phase of the singular vectors."""
    u, s, vh = linalg.svd(x, full_matrices=False)
    return s, jnp.abs(u), jnp.abs(vh), (u * jnp.sin(s)[..., None, :].astype(u.dtype)) @ vh


def eig(x, **options):
    w, v = linalg.eig(x, compute_left_eigenvectors=False, enable_eigvec_derivs=True)
    return w.real, w.imag, v.real, v.imag


def qr(full_matrices=False):
    return functools.partial(linalg.qr, full_matrices=full_matrices)


def tridiagonal(a, b, c, rhs):
    return linalg.tridiagonal_solve(a, b + 4, c, rhs)


AB = (square(3), normal(3, 2))
DIAGONALS = (normal(5), normal(5), normal(5))

CASES = [
    Case("cholesky", lambda x: linalg.cholesky(hermitian(x), symmetrize_input=False), (positive(4),), complex=True),
    Case("cholesky/a triangle", lambda x: linalg.cholesky(x, symmetrize_input=False), (positive(4),), complex=True),
    Case("cholesky/batched", linalg.cholesky, (positive(3, 2),)),
    Case("cholesky/one", linalg.cholesky, (positive(1),)),
    Case("triangular_solve/left", solved(left_side=True), AB, complex=True),
    Case("triangular_solve/left, lower", solved(left_side=True, lower=True, transpose_a=True), AB, complex=True),
    Case(
        "triangular_solve/left, conjugate", solved(left_side=True, transpose_a=True, conjugate_a=True), AB, complex=True
    ),
    Case("triangular_solve/right", solved(lower=True), (square(3), normal(2, 3)), complex=True),
    Case("triangular_solve/right, transposed", solved(transpose_a=True), (square(3), normal(2, 3)), complex=True),
    Case("triangular_solve/unit", solved(left_side=True, lower=True, unit_diagonal=True), AB),
    Case("triangular_solve/batched", solved(left_side=True, lower=True), (square(3, 2), normal(2, 3, 4))),
    Case("tridiagonal_solve", tridiagonal, (*DIAGONALS, normal(5, 2)), complex=True),
    Case("tridiagonal_solve/batched", tridiagonal, (normal(2, 4), normal(2, 4), normal(2, 4), normal(2, 4, 3))),
    Case("lu", lambda x: linalg.lu(x)[0], (square(4),), complex=True),
    Case("lu/tall", lambda x: linalg.lu(x)[0], (normal(5, 3),)),
    Case("lu/wide", lambda x: linalg.lu(x)[0], (normal(3, 5),)),
    Case("lu/batched", lambda x: linalg.lu(x)[0], (square(3, 2),)),
    Case("solve", jnp.linalg.solve, (square(4), normal(4, 2)), complex=True),
    Case("inv", jnp.linalg.inv, (square(3, 2),), complex=True),
    Case("det", jnp.linalg.det, (square(3, 2),), complex=True),
    Case("slogdet", lambda x: jnp.linalg.slogdet(x)[1], (square(4),)),
    Case("qr/square", qr(), (square(4),), complex=True),
    Case("qr/tall", qr(), (normal(5, 3),), complex=True),
    Case("qr/wide", qr(), (normal(3, 5),), complex=True),
    Case("qr/full", qr(full_matrices=True), (normal(5, 3),), second=False),
    Case("qr/batched", qr(), (normal(2, 4, 3),)),
    Case("qr/pivoted", lambda x: linalg.qr(x, pivoting=True, full_matrices=False)[:2], (normal(4, 3),)),
    Case("eigh", eigh, (positive(4),), complex=True),
    Case("eigh/batched", eigh, (positive(3, 2),)),
    Case("eigh/values", lambda x: jnp.linalg.eigvalsh(x), (positive(4),), complex=True, frugal=False),
    Case("eig/values", lambda x: (jnp.linalg.eigvals(x).real, jnp.linalg.eigvals(x).imag), (square(4),), second=False),
    Case(
        "eig/values, complex",
        lambda x, y: jnp.abs(jnp.linalg.eigvals(lax.complex(x, y))),
        (square(3), square(3)),
        second=False,
    ),
    Case("eig/vectors", eig, (square(4),), second=False),
    Case("svd/square", svd, (square(3),), complex=True),
    Case("svd/tall", svd, (normal(4, 3),), complex=True),
    Case("svd/wide", svd, (normal(3, 4),), complex=True),
    Case("svd/batched", svd, (normal(2, 3, 2),)),
    Case("svd/values", lambda x: jnp.linalg.svd(x, compute_uv=False), (normal(3, 4),), complex=True),
    Case("pinv", jnp.linalg.pinv, (normal(4, 3),)),
    Case("expm", jax.scipy.linalg.expm, (square(3),)),
]
