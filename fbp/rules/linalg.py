"""Linear algebra: factorizations, and solves with what they give.

The cotangent of a real function pairs with a tangent as Σ g ẏ. The rules come from the tangent of each factorization,
found by differentiating its definition (A = L Lᴴ and L triangular, ...), read backwards: Ẏ = M Ẋ N => X̄ = Mᵀ G Nᵀ, and
Ẏ = Ẋᴴ => X̄ = Gᴴ. Sources: Giles 2008, "An extended collection of matrix derivative results"; Murray 2016, eq. 10 (Cholesky);
de Hoog, Anderssen & Lukas 2011 (LU); Walter & Lehmann 2010 (QR); Boeddeker et al. 2017 (complex).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as p
from jax.lax.linalg import triangular_solve, tridiagonal_solve

from fbp import _compat
from fbp.core import Rule, table, zero_tangent

matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def dot(*matrices):
    """The product of matrices, from left to right."""
    return functools.reduce(matmul, matrices)


def T(x):
    """The transpose."""
    return jnp.swapaxes(x, -1, -2)


def H(x):
    """The conjugate transpose."""
    return T(lax.conj(x)) if jnp.iscomplexobj(x) else T(x)


def eye(n, x):
    """The identity n × n, of as many axes as x, so that both may be added where JAX is told to raise at unequal ranks."""
    return lax.expand_dims(jnp.eye(n, dtype=x.dtype), range(x.ndim - 2))


def diagonal(x):
    """The matrix with these diagonal entries."""
    column = x[..., None]
    return column * eye(x.shape[-1], column)


def entries(x):
    """The diagonal entries of a matrix."""
    return jnp.diagonal(x, axis1=-2, axis2=-1)


def conj(x):
    return lax.conj(x) if jnp.iscomplexobj(x) else x


def as_real(x, dtype):
    """Re x for a real dtype, x for a complex one."""
    return x if jnp.issubdtype(dtype, jnp.complexfloating) else x.real


def imaginary(x):
    """i Im x; nothing for a real x."""
    return lax.complex(jnp.zeros_like(x.real), x.imag) if jnp.iscomplexobj(x) else jnp.zeros_like(x)


def gaps_inverse(w):
    """F_ij = 1 / (w_j - w_i), and 0 on the diagonal."""
    column = w[..., :, None]
    ones = eye(w.shape[-1], column)
    return 1 / (w[..., None, :] - column + ones) - ones


# ------------------------------------------------------------------------------------------------------ Cholesky


def cholesky(x, **params):
    """L; the primitive leaves in the other triangle what was there."""
    return jnp.tril(p.cholesky_p.bind(x, **params))


def lower_half(x):
    """Φ x: the lower triangle, and half the diagonal."""
    return jnp.tril(x) * (1 - eye(x.shape[-1], x) / 2)


def cholesky_bar(g, y):
    """A = L Lᴴ: L̇ = L Φ(L⁻¹ Ȧ L⁻ᴴ)  =>  Ā = L⁻ᵀ Φ(Lᵀ g) conj(L)⁻¹.

    L is of the lower triangle of A alone, Ȧ = Φ(Ȧ) + Φ(Ȧ)ᴴ, and so is the cotangent, Φ(Ā + Āᴴ), in JAX since 0.11.2."""
    left = triangular_solve(y, lower_half(matmul(T(y), g)), left_side=True, lower=True, transpose_a=True)
    bar = triangular_solve(y, left, left_side=False, lower=True, conjugate_a=True)
    return lower_half(bar + H(bar)) if _compat.CHOLESKY_READS_A_TRIANGLE else bar


# -------------------------------------------------------------------------------------------------------- solves


def triangular_right_bar(g, a, *, left_side, lower, transpose_a, conjugate_a, unit_diagonal):
    """A x = b  =>  b_bar = A⁻ᵀ g."""
    options = {"left_side": left_side, "lower": lower, "conjugate_a": conjugate_a, "unit_diagonal": unit_diagonal}
    return triangular_solve(a, g, transpose_a=not transpose_a, **options)


def triangular_matrix_bar(g, a, y, *, left_side, lower, transpose_a, conjugate_a, unit_diagonal):
    """A y = b: A ẏ = -Ȧ y  =>  Ā = -(A⁻ᵀ g) yᵀ, or, of y A = b, -yᵀ (g A⁻ᵀ); of it, the triangle that is read."""
    options = {"left_side": left_side, "lower": lower, "conjugate_a": conjugate_a, "unit_diagonal": unit_diagonal}
    b_bar = triangular_right_bar(g, a, transpose_a=transpose_a, **options)
    bar = -matmul(b_bar, T(y)) if left_side else -matmul(T(y), b_bar)
    bar = T(bar) if transpose_a else bar
    bar = conj(bar) if conjugate_a else bar
    return jnp.tril(bar, -int(unit_diagonal)) if lower else jnp.triu(bar, int(unit_diagonal))


def _tridiagonal_forward(site, lower, diag, upper, b, **params):
    x = site.primitive.bind(lower, diag, upper, b, **params)
    return x, (lower, diag, upper, x if any(site.needs[:3]) else None)


def _tridiagonal_backward(site, residuals, g, **params):
    """M x = b, M with three diagonals  =>  b_bar = M⁻ᵀ g, and M̄ = -b_bar xᵀ on the three."""
    lower, diag, upper, x = residuals
    below = jnp.concatenate([jnp.zeros_like(upper[..., :1]), upper[..., :-1]], -1)
    above = jnp.concatenate([lower[..., 1:], jnp.zeros_like(lower[..., :1])], -1)
    b_bar = tridiagonal_solve(below, diag, above, g, **params)
    if x is None:
        return [None, None, None, b_bar]
    nothing = jnp.zeros_like(diag[..., :1])
    lower_bar = jnp.concatenate([nothing, -jnp.sum(b_bar[..., 1:, :] * x[..., :-1, :], -1)], -1)
    upper_bar = jnp.concatenate([-jnp.sum(b_bar[..., :-1, :] * x[..., 1:, :], -1), nothing], -1)
    return [lower_bar, -jnp.sum(b_bar * x, -1), upper_bar, b_bar]


# ------------------------------------------------------------------------------------------------------------ LU


def _lu_forward(site, a, **params):
    lu, pivots, permutation = site.primitive.bind(a, **params)
    return [lu, pivots, permutation], (lu, permutation)


def _lu_backward(site, residuals, g, *_, **__):
    """P A = L U: F = L⁻¹ P Ȧ U⁻¹, L̇ = L tril(F), U̇ = triu(F) U  =>  P Ā = L⁻ᵀ (tril(Lᵀ g) + triu(g Uᵀ)) U⁻ᵀ,
    with tril below the diagonal. L and U made square with ones: m × m and n × n."""
    lu, permutation = residuals
    m, n = lu.shape[-2:]
    k = min(m, n)
    no_batch = [(0, 0)] * (lu.ndim - 2)
    lower = jnp.tril(jnp.pad(lu[..., :k], [*no_batch, (0, 0), (0, m - k)]), -1) + eye(m, lu)
    beyond = (jnp.arange(n) >= k).astype(lu.dtype)
    ones = lax.expand_dims(diagonal(beyond), range(lu.ndim - 2))
    upper = jnp.triu(jnp.pad(lu[..., :k, :], [*no_batch, (0, n - k), (0, 0)])) + ones
    inner = jnp.tril(matmul(T(lower), g), -1) + jnp.triu(matmul(g, T(upper)))
    left = triangular_solve(lower, inner, left_side=True, lower=True, transpose_a=True, unit_diagonal=True)
    bar = triangular_solve(upper, left, left_side=False, lower=False, transpose_a=True)
    back = jnp.argsort(permutation, -1)
    return [jnp.take_along_axis(bar, back[..., None], -2)]


# ------------------------------------------------------------------------------------------------------------ QR


def thin_qr_bar(q_bar, r_bar, q, r):
    """X = Q R, R square: W = Qᴴ Ẋ R⁻¹, Ω = tril(W) - tril(W)ᴴ + i Im diag(W), Q̇ = Q (Ω - W) + Ẋ R⁻¹, Ṙ = (W - Ω) R
    =>  K = Qᵀ Q̄ - R̄ Rᵀ,  W̄ = tril(K - Kᴴ) + i Im diag(K) - K,  X̄ = (Q̄ + conj(Q) W̄) R⁻ᵀ, with tril below the diagonal."""
    k = matmul(T(q), q_bar) - matmul(r_bar, T(r))
    w_bar = jnp.tril(k - H(k), -1) + diagonal(imaginary(entries(k))) - k
    return triangular_solve(r, q_bar + matmul(conj(q), w_bar), left_side=False, lower=False, transpose_a=True)


def _qr_forward(site, x, *, full_matrices, **params):
    q, r, *pivots = site.primitive.bind(x, full_matrices=full_matrices, **params)
    m, n = x.shape[-2:]
    if not full_matrices or m <= n:
        return [q, r, *pivots], (q, r, *pivots)

    # The columns that complete Q: their tangent (arXiv 2409.13374, eqs. 32 and 33) is linear, and reversed as it stands.
    def tangent(x_dot):
        return list(_full_qr_tangent(q, r, x_dot[..., pivots[0]] if pivots else x_dot))

    _, pullback = site.vjp(tangent, site.needs, zero_tangent(site.avals[0]))
    return [q, r, *pivots], pullback


def _full_qr_tangent(q, r, x_dot):
    m, n = x_dot.shape[-2:]
    first, rest, square = q[..., :n], q[..., n:], r[..., :n, :]
    z = triangular_solve(square, x_dot, left_side=False, lower=False)
    w = matmul(H(first), z)
    omega = jnp.tril(w, -1) - H(jnp.tril(w, -1)) + diagonal(imaginary(entries(w)))
    first_dot, square_dot = matmul(first, omega - w) + z, matmul(w - omega, square)
    top, bottom = first[..., :n, :], first[..., n:, :]
    ratio = H(jnp.linalg.solve(H(top - eye(n, top)), H(bottom)))
    change = first_dot[..., n:, :] - matmul(ratio, first_dot[..., :n, :])
    rest_dot = matmul(first_dot, H(ratio)) - matmul(first + matmul(rest, ratio), H(change))
    nothing = jnp.zeros((*r.shape[:-2], m - n, n), r.dtype)
    return jnp.concatenate([first_dot, rest_dot], -1), jnp.concatenate([square_dot, nothing], -2)


def _qr_backward(site, residuals, q_bar, r_bar, *_, **__):
    if not isinstance(residuals, tuple):
        return residuals(q_bar, r_bar)
    q, r, *pivots = residuals
    q_bar = jnp.zeros_like(q) if q_bar is None else q_bar
    r_bar = jnp.zeros_like(r) if r_bar is None else r_bar
    m, n = q.shape[-2], r.shape[-1]
    if m < n:  # X = (X₁ X₂) = Q (R₁ R₂): the first is a square problem, and R₂ = Qᴴ X₂.
        r_bar, beyond = r_bar[..., :m], r_bar[..., m:]
        q_bar = q_bar + matmul(conj(matmul(q, r[..., m:])), H(beyond))
        x_bar = jnp.concatenate([thin_qr_bar(q_bar, r_bar, q, r[..., :m]), matmul(conj(q), beyond)], -1)
    else:
        x_bar = thin_qr_bar(q_bar, r_bar, q, r)
    if pivots:
        x_bar = jnp.take_along_axis(x_bar, jnp.argsort(pivots[0], -1)[..., None, :], -1)
    return [x_bar]


# --------------------------------------------------------------------------------- eigenvalues, singular values


def _eigh_forward(site, a, *, subset_by_index, **params):
    if subset_by_index not in (None, (0, a.shape[-1])):
        raise NotImplementedError(f"no cotangents for {site} of some eigenvalues only: JAX defines none.")
    v, w = site.primitive.bind(a, subset_by_index=subset_by_index, **params)
    return [v, w], (v, w)


def _eigh_backward(site, residuals, v_bar, w_bar, **_):
    """A = V diag(w) Vᴴ: M = Vᴴ Ȧ V, ẇ = Re diag(M), V̇ = V (F ∘ M)  =>  Ā = conj(V) (diag(w_bar) + F ∘ Vᵀ v_bar) Vᵀ."""
    v, w = residuals
    m_bar = 0 if w_bar is None else diagonal(w_bar.astype(v.dtype))
    if v_bar is not None:
        m_bar = m_bar + gaps_inverse(w).astype(v.dtype) * matmul(T(v), v_bar)
    return [dot(conj(v), m_bar, T(v))]


def _eig_forward(site, a, *, compute_left_eigenvectors, compute_right_eigenvectors, **params):
    vectors = compute_left_eigenvectors or compute_right_eigenvectors
    if vectors and not params.get("enable_eigvec_derivs"):
        raise NotImplementedError(
            f"no cotangents for the eigenvectors that {site} computes: they are defined only up to a factor. Pass "
            "enable_eigvec_derivs=True to jax.lax.linalg.eig if the function does not depend on it, or take eigenvalues only."
        )
    options = {name: True if name == "enable_eigvec_derivs" else value for name, value in params.items()}
    w, *found = site.primitive.bind(
        a, compute_left_eigenvectors=compute_left_eigenvectors, compute_right_eigenvectors=True, **options
    )
    if not vectors:
        return [w], found[0]

    # The factor that LAPACK chooses depends on the largest entry; the tangent is linear, and reversed as it stands.
    def tangent(a_dot):
        a_dot = a_dot.astype(w.dtype)
        left = [_eigenvectors_tangent(conj(w), found[0], H(a_dot))] if compute_left_eigenvectors else []
        right = _eigenvectors_tangent(w, found[-1], a_dot)
        return [entries(_in_basis(found[-1], a_dot)), *left, *([right] if compute_right_eigenvectors else [])]

    _, pullback = site.vjp(tangent, site.needs, zero_tangent(site.avals[0]))
    return [w, *found[: compute_left_eigenvectors + compute_right_eigenvectors]], pullback


def _in_basis(v, a_dot):
    """V⁻¹ Ȧ V"""
    return jnp.linalg.solve(v, matmul(a_dot, v))


def _eigenvectors_tangent(w, v, a_dot):
    """V̇ = U + V diag(c), U = V (F ∘ V⁻¹ Ȧ V), with the c that keeps each column's norm 1 and its largest entry real."""
    u = matmul(v, gaps_inverse(w) * _in_basis(v, a_dot))
    rows = jnp.argmax(jnp.abs(v), -2)[..., None, :]
    largest, change = jnp.take_along_axis(v, rows, -2), jnp.take_along_axis(u, rows, -2)
    c = lax.complex(-jnp.sum(conj(v) * u, -2, keepdims=True).real, -change.imag / largest.real)
    return u + v * c


def _eig_backward(site, residuals, w_bar, *v_bars, **_):
    """A V = V diag(w): ẇ = diag(V⁻¹ Ȧ V)  =>  Ā = V⁻ᵀ diag(w_bar) Vᵀ."""
    if not isinstance(residuals, jax.Array):
        return residuals(w_bar, *v_bars)
    v = residuals
    return [as_real(jnp.linalg.solve(T(v), w_bar[..., :, None] * T(v)), site.avals[0].dtype)]


def _svd_forward(site, a, *, full_matrices, compute_uv, **params):
    if compute_uv and full_matrices and a.shape[-2] != a.shape[-1]:
        raise NotImplementedError(
            f"no cotangents for {site} with full_matrices, whose last columns are arbitrary: JAX defines none. Pass "
            "full_matrices=False."
        )
    s, u, vh = site.primitive.bind(a, full_matrices=False, compute_uv=True, **params)
    return ([s, u, vh], (s, u, vh)) if compute_uv else ([s], (None, u, vh))


def _svd_backward(site, residuals, s_bar, u_bar=None, vh_bar=None, **_):
    """A = U diag(s) Vᴴ: M = Uᴴ Ȧ V, ṡ = Re diag(M), and with F_ij = 1 / (s_j² - s_i²)

      U̇ = U (F ∘ (M s + (M s)ᴴ) + i Im diag(M) / s) + (1 - U Uᴴ) Ȧ V / s
      V̇ = V (F ∘ (s M + (s M)ᴴ)) + (1 - V Vᴴ) Ȧᴴ U / s

    read backwards (Giles 2008, section 3.7, with the last terms for A of more rows, or columns, than the other)."""
    s, u, vh = residuals
    ut, v, vt = T(u), H(vh), conj(vh)
    m, n = site.avals[0].shape[-2:]
    m_bar = 0 if s_bar is None else diagonal(s_bar.astype(u.dtype))
    if s is None:
        return [dot(conj(u), m_bar, vt)]
    a_bar, real = 0, s[..., None, :].astype(u.dtype)
    f = gaps_inverse(s * s).astype(u.dtype)
    s_inverse = jnp.where(s == 0, jnp.zeros_like(s), 1 / jnp.where(s == 0, jnp.ones_like(s), s)).astype(u.dtype)
    if u_bar is not None:
        k = matmul(ut, u_bar)
        m_bar = m_bar + (f * k + H(f * k)) * real + diagonal(imaginary(entries(k)) * s_inverse)
        if m > n:
            outside = u_bar - matmul(conj(u), k)
            a_bar = a_bar + matmul(outside / real, vt)
    if vh_bar is not None:
        v_bar = H(vh_bar)
        k = matmul(T(v), v_bar)
        m_bar = m_bar + T(real) * (f * k + H(f * k))
        if n > m:
            outside = v_bar - matmul(conj(v), k)
            a_bar = a_bar + H(matmul(outside / real, ut))
    return [a_bar + dot(conj(u), m_bar, vt)]


RULES = {
    p.cholesky_p: table(cholesky_bar, fwd=cholesky),
    p.triangular_solve_p: table(triangular_matrix_bar, triangular_right_bar),
    p.tridiagonal_solve_p: Rule(_tridiagonal_forward, _tridiagonal_backward),
    p.lu_p: Rule(_lu_forward, _lu_backward),
    p.qr_p: Rule(_qr_forward, _qr_backward),
    p.eigh_p: Rule(_eigh_forward, _eigh_backward),
    p.eig_p: Rule(_eig_forward, _eig_backward),
    p.svd_p: Rule(_svd_forward, _svd_backward),
}
