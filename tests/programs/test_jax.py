"""What JAX itself offers above its primitives: jax.numpy, jax.nn, jax.scipy, jax.image, implicit differentiation."""

import functools

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
from jax import lax
from jax.experimental.ode import odeint

from tests.programs.agree import Program, check, normal, one_test_each, uniform

X, Y, M = normal(3, 4), normal(3, 4, seed=1), normal(4, 4)
POSITIVE, UNIT = uniform(0.3, 2, 3, 4), uniform(0.1, 0.9, 3, 4)
SPD = M @ M.T + 4 * np.eye(4)
I = np.arange(3)  # noqa: E741

NUMPY = {
    "angle": (lambda x, y: jnp.angle(lax.complex(x, y)), X, Y),
    "arctan2": (jnp.arctan2, X, Y),
    "average": (lambda x, w: jnp.average(x, weights=w), X, POSITIVE),
    "block": (lambda x, y: jnp.block([[x, y], [y, x]]), X, Y),
    "clip": (lambda x: jnp.clip(x, -0.5, 0.5), X),
    "convolve": (lambda x, y: jnp.convolve(x[0], y[0]), X, Y),
    "corrcoef": (jnp.corrcoef, X),
    "correlate": (lambda x, y: jnp.correlate(x[0], y[0], "full"), X, Y),
    "cov": (jnp.cov, X),
    "cross": (lambda x, y: jnp.cross(x[:, :3], y[:, :3]), X, Y),
    "cumprod": (lambda x: jnp.cumprod(x, 1), X),
    "cumsum": (lambda x: jnp.cumsum(x, 0), X),
    "deg2rad": (jnp.deg2rad, X),
    "diagonal": (jnp.diagonal, M),
    "diff": (lambda x: jnp.diff(x, 2), X),
    "divide": (jnp.divide, X, POSITIVE),
    "einsum path": (lambda x, y, m: jnp.einsum("ij,kj,jl->ikl", x, y, m), X, Y, M),
    "exp2": (jnp.exp2, X),
    "expm1": (jnp.expm1, X),
    "fmod": (jnp.fmod, X, POSITIVE),
    "gradient": (lambda x: jnp.gradient(x), X),
    "heaviside": (lambda x: jnp.heaviside(x, 0.5) * x, X),
    "histogram weights": (lambda w: jnp.histogram(jnp.asarray(X), 4, weights=w)[0], POSITIVE),
    "hypot": (jnp.hypot, X, Y),
    "i0": (jnp.i0, X),
    "inner": (jnp.inner, X, Y),
    "insert": (lambda x: jnp.insert(x, 1, 5.0, 1), X),
    "interp": (lambda x, f: jnp.interp(x, jnp.linspace(-2, 2, 4), f[0]), X, Y),
    "kron": (jnp.kron, X, Y),
    "lexsort": (lambda x, y: x[0][jnp.lexsort((y[0], x[0]))] ** 2, X, Y),
    "log1p": (jnp.log1p, POSITIVE),
    "logaddexp": (jnp.logaddexp, X, Y),
    "logaddexp2": (jnp.logaddexp2, X, Y),
    "matmul": (lambda x, m: x @ m @ m, X, M),
    "max": (lambda x: jnp.max(x, 1), X),
    "maximum": (jnp.maximum, X, Y),
    "median": (lambda x: jnp.median(x, 1), X),
    "mod": (jnp.mod, X, POSITIVE),
    "nan_to_num": (lambda x: jnp.nan_to_num(x) ** 2, X),
    "nanmean": (lambda x: jnp.nanmean(jnp.where(x > 1, jnp.nan, x)), X),
    "nanstd": (lambda x: jnp.nanstd(jnp.where(x > 1, jnp.nan, x)), X),
    "outer": (jnp.outer, X, Y),
    "pad": (lambda x: jnp.pad(x, ((1, 2), (0, 1)), "reflect"), X),
    "percentile": (lambda x: jnp.percentile(x, 30, 1), X),
    "piecewise": (lambda x: jnp.piecewise(x, [x < 0, x >= 0], [jnp.sin, jnp.exp]), X),
    "polyfit": (lambda x, y: jnp.polyfit(x[0], y[0], 2), X, Y),
    "polyval": (lambda c, x: jnp.polyval(c[0], x), X, Y),
    "power": (jnp.power, POSITIVE, X),
    "prod": (lambda x: jnp.prod(x, 1), X),
    "ptp": (lambda x: jnp.ptp(x, 1), X),
    "quantile": (lambda x: jnp.quantile(x, 0.3, 1), X),
    "repeat": (lambda x: jnp.repeat(x, 2, 1), X),
    "roll": (lambda x: jnp.roll(x, 1, 1) * x, X),
    "rot90": (lambda x: jnp.rot90(x) * jnp.rot90(x), X),
    "searchsorted": (lambda x, y: y * jnp.searchsorted(jnp.sort(x[0]), y), X, Y),
    "select": (lambda x, y: jnp.select([x > 1, x > 0], [x, y], 0.5), X, Y),
    "sinc": (jnp.sinc, X),
    "sort": (lambda x: jnp.sort(x, 1) ** 2, X),
    "std": (lambda x: jnp.std(x, 1), X),
    "take": (lambda x: jnp.take(x, jnp.array([2, 0, 2]), 0), X),
    "take_along_axis": (lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1), X),
    "tensordot": (lambda x, y: jnp.tensordot(x, y, ((0,), (0,))), X, Y),
    "trace": (jnp.trace, M),
    "trapezoid": (jnp.trapezoid, X),
    "tril": (jnp.tril, M),
    "unwrap": (lambda x: jnp.unwrap(4 * x), X),
    "vander": (lambda x: jnp.vander(x[0]), X),
    "var": (lambda x: jnp.var(x, 1, ddof=1), X),
    "vdot": (jnp.vdot, X, Y),
    "where": (lambda x, y: jnp.where(x > y, x * y, x - y), X, Y),
    "at set": (lambda x, y: x.at[1, ::2].set(y[0, :2]), X, Y),
    "at multiply": (lambda x, y: x.at[jnp.array([0, 2])].multiply(y[:2], unique_indices=True), X, Y),
    "at max": (lambda x, y: x.at[jnp.array([0, 2])].max(y[:2]), X, Y),
    "boolean index": (lambda x: x[np.asarray(X) > 0] ** 2, X),
    "fancy index": (lambda x: x[I[:, None], jnp.array([[0, 1], [2, 3], [1, 1]])] ** 2, X),
    "segment_sum": (lambda x: jax.ops.segment_sum(x, jnp.array([0, 1, 0]), 2), X),
    "segment_max": (lambda x: jax.ops.segment_max(x, jnp.array([0, 1, 0]), 2), X),
    "associative_scan": (lambda x: lax.associative_scan(jnp.multiply, x, axis=1), X),
    "lax.map": (lambda x: lax.map(lambda r: jnp.tanh(r) @ r, x, batch_size=2), X),
    "logcumsumexp": (lambda x: lax.cumlogsumexp(x, 1), X),
    "top_k": (lambda x: lax.top_k(x, 2)[0], X),
}

LINALG = {
    "cholesky": (jnp.linalg.cholesky, SPD),
    "cond": (jnp.linalg.cond, SPD),
    "det": (jnp.linalg.det, SPD),
    "eigh": (lambda x: jnp.abs(jnp.linalg.eigh(x)[1]), SPD),
    "eigvals": (lambda x: jnp.abs(jnp.linalg.eigvals(x)), SPD),
    "eigvalsh": (jnp.linalg.eigvalsh, SPD),
    "inv": (jnp.linalg.inv, SPD),
    "lstsq": (lambda a, b: jnp.linalg.lstsq(a, b)[0], X.T, Y.T),
    "matrix_power": (lambda x: jnp.linalg.matrix_power(x, 3), M),
    "multi_dot": (lambda x, m: jnp.linalg.multi_dot([x, m, m]), X, M),
    "norm": (jnp.linalg.norm, X),
    "norm 1": (lambda x: jnp.linalg.norm(x, 1), X),
    "norm 2": (lambda x: jnp.linalg.norm(x, 2), X),
    "norm nuclear": (lambda x: jnp.linalg.norm(x, "nuc"), X),
    "pinv": (jnp.linalg.pinv, X),
    "qr": (lambda x: jnp.linalg.qr(x)[1], M),
    "slogdet": (lambda x: jnp.linalg.slogdet(x)[1], SPD),
    "solve": (jnp.linalg.solve, SPD, X.T),
    "svd": (lambda x: jnp.abs(jnp.linalg.svd(x, full_matrices=False)[0]), X),
    "tensorsolve": (lambda a, b: jnp.linalg.tensorsolve(a.reshape(2, 2, 2, 2), b[0].reshape(2, 2)), SPD, X),
    "vector_norm": (lambda x: jnp.linalg.vector_norm(x, axis=1, ord=3), X),
    "scipy cho_solve": (lambda a, b: jsp.linalg.cho_solve(jsp.linalg.cho_factor(a), b), SPD, X.T),
    "scipy expm": (jsp.linalg.expm, M),
    "scipy block_diag": (lambda x, y: jsp.linalg.block_diag(x, y), X, Y),
    "scipy lu": (lambda x: jsp.linalg.lu(x)[1:], M),
    "scipy lu_solve": (lambda a, b: jsp.linalg.lu_solve(jsp.linalg.lu_factor(a), b), SPD, X.T),
    "scipy solve": (lambda a, b: jsp.linalg.solve(a, b, assume_a="pos"), SPD, X.T),
    "scipy solve_triangular": (lambda a, b: jsp.linalg.solve_triangular(a, b, lower=True), SPD, X.T),
    "scipy toeplitz": (lambda x: jsp.linalg.toeplitz(x[0]), X),
    "scipy cg": (lambda a, b: jsp.sparse.linalg.cg(a, b[0], tol=1e-12)[0], SPD, X),
    "scipy gmres": (lambda a, b: jsp.sparse.linalg.gmres(a, b[0], tol=1e-12)[0], SPD, X),
    "scipy bicgstab": (lambda a, b: jsp.sparse.linalg.bicgstab(a, b[0], tol=1e-12)[0], SPD, X),
}

FFT = {
    name: (functools.partial(lambda name, x, y: getattr(jnp.fft, name)(lax.complex(x, y)), name), X, Y)
    for name in ("fft", "ifft", "fft2", "ifft2", "fftn", "ifftn", "irfft", "irfft2", "irfftn", "hfft", "fftshift")
} | {name: (getattr(jnp.fft, name), X) for name in ("rfft", "rfft2", "rfftn", "ihfft")}

SPECIAL = {
    name: (getattr(jsp.special, name), x)
    for names, x in [
        ("entr gammaln digamma log_softmax softmax expi spence log1p", POSITIVE),
        ("erf erfc expit log_ndtr ndtr i0 i0e i1 i1e logsumexp sinc", X),
        ("erfinv logit ndtri", UNIT),
    ]
    for name in names.split()
    if hasattr(jsp.special, name)
} | {
    "betaln": (jsp.special.betaln, POSITIVE, UNIT),
    "beta": (jsp.special.beta, POSITIVE, UNIT),
    "betainc": (lambda x: jsp.special.betainc(1.5, 2.5, x), UNIT),
    "factorial": (jsp.special.factorial, POSITIVE),
    "gamma": (jsp.special.gamma, POSITIVE),
    "gammainc": (jsp.special.gammainc, POSITIVE, UNIT),
    "gammaincc": (jsp.special.gammaincc, POSITIVE, UNIT),
    "hyp1f1": (lambda x: jsp.special.hyp1f1(1.5, 2.5, x), X),
    "kl_div": (jsp.special.kl_div, POSITIVE, UNIT),
    "multigammaln": (lambda x: jsp.special.multigammaln(x + 3, 3), POSITIVE),
    "poch": (lambda z: jsp.special.poch(z, 2.0), POSITIVE),
    "polygamma": (lambda x: jsp.special.polygamma(2, x), POSITIVE),
    "rel_entr": (jsp.special.rel_entr, POSITIVE, UNIT),
    "xlog1py": (jsp.special.xlog1py, POSITIVE, UNIT),
    "xlogy": (jsp.special.xlogy, POSITIVE, UNIT),
    "zeta": (lambda q: jsp.special.zeta(2.0, q), POSITIVE),
    "bessel_jn": (lambda z: jsp.special.bessel_jn(z, v=2, n_iter=20), POSITIVE[0]),
}

STATS = {
    "bernoulli": (lambda p: jsp.stats.bernoulli.logpmf(1, p), UNIT),
    "beta": (jsp.stats.beta.logpdf, UNIT, POSITIVE, POSITIVE),
    "binom": (lambda p: jsp.stats.binom.logpmf(2, 5, p), UNIT),
    "cauchy": (jsp.stats.cauchy.logpdf, X, Y, POSITIVE),
    "chi2": (jsp.stats.chi2.logpdf, POSITIVE, POSITIVE),
    "dirichlet": (lambda a: jsp.stats.dirichlet.logpdf(jnp.array([0.2, 0.3, 0.1, 0.4]), a[0]), POSITIVE),
    "expon": (jsp.stats.expon.logpdf, POSITIVE),
    "gamma": (jsp.stats.gamma.logpdf, POSITIVE, POSITIVE),
    "gamma cdf": (jsp.stats.gamma.cdf, POSITIVE, UNIT),
    "gaussian_kde": (lambda d, x: jsp.stats.gaussian_kde(d)(x[:, :2]), X, Y),
    "gennorm": (jsp.stats.gennorm.logpdf, X, POSITIVE),
    "laplace": (jsp.stats.laplace.logpdf, X, Y, POSITIVE),
    "logistic": (jsp.stats.logistic.logpdf, X),
    "multivariate_normal": (lambda x, m, c: jsp.stats.multivariate_normal.logpdf(x, m[0], c), X, Y, SPD),
    "nbinom": (lambda p: jsp.stats.nbinom.logpmf(2, 3, p), UNIT),
    "norm": (jsp.stats.norm.logpdf, X, Y, POSITIVE),
    "norm cdf": (jsp.stats.norm.logcdf, X, Y, POSITIVE),
    "norm ppf": (jsp.stats.norm.ppf, UNIT),
    "pareto": (jsp.stats.pareto.logpdf, POSITIVE + 3, POSITIVE),
    "poisson": (lambda mu: jsp.stats.poisson.logpmf(3, mu), POSITIVE),
    "t": (jsp.stats.t.logpdf, X, POSITIVE),
    "truncnorm": (lambda x: jsp.stats.truncnorm.logpdf(x, -2.0, 2.0), X / 2),
    "vonmises": (jsp.stats.vonmises.logpdf, X, POSITIVE),
}

NN = {
    name: (getattr(jax.nn, name), X)
    for name in [
        "celu", "elu", "gelu", "glu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "leaky_relu",
        "log_sigmoid", "log_softmax", "logsumexp", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign",
        "softmax", "softplus", "sparse_plus", "sparse_sigmoid", "squareplus", "standardize", "tanh", "identity",
    ]
    if hasattr(jax.nn, name)
}  # fmt: skip

IMAGE = normal(5, 6, 2)
OTHER = {
    f"resize {method}": (lambda x, m=method: jax.image.resize(x, (8, 3, 2), m), IMAGE)
    for method in ("nearest", "linear", "cubic", "lanczos3", "lanczos5")
} | {
    "scale_and_translate": (
        lambda x, s, t: jax.image.scale_and_translate(x, (6, 6, 2), (0, 1), s[0, :2], t[0, :2], "linear"),
        IMAGE, POSITIVE, UNIT,
    ),
    "map_coordinates": (lambda x, c: jsp.ndimage.map_coordinates(x, [c, c], order=1), IMAGE[..., 0], POSITIVE),
    "signal convolve2d": (lambda x, y: jsp.signal.convolve2d(x, y), X, Y),
    "signal fftconvolve": (lambda x, y: jsp.signal.fftconvolve(x, y), X, Y),
    "signal stft": (lambda x: jnp.abs(jsp.signal.stft(x.ravel(), nperseg=4)[2]), X),
    "signal welch": (lambda x: jsp.signal.welch(x.ravel(), nperseg=8)[1], X),
    "signal detrend": (lambda x: jsp.signal.detrend(x), X),
    "odeint": (lambda y, w: odeint(lambda y, t, w: jnp.sin(w @ y) - y * t, y[0], jnp.array([0.0, 0.5, 1.0]), w), X, M),
    "custom_root": (
        lambda a: lax.custom_root(
            lambda x: jnp.tanh(x) + x - a,
            jnp.zeros_like(a),
            lambda f, x: lax.fori_loop(0, 60, lambda _, x: x - f(x) / (2 - jnp.tanh(x) ** 2), x),
            lambda g, y: y / g(jnp.ones_like(y)),
        ),
        X,
    ),
    "RegularGridInterpolator": (
        lambda v, x: jsp.interpolate.RegularGridInterpolator((jnp.arange(3.0), jnp.arange(4.0)), v)(x[:, :2]), X, UNIT,
    ),
    "random gamma": (lambda a: jax.random.gamma(jax.random.key(0), a), POSITIVE),
    "random dirichlet": (lambda a: jax.random.dirichlet(jax.random.key(0), a[0]), POSITIVE),
    "random normal": (lambda m, s: m + s * jax.random.normal(jax.random.key(0), m.shape), X, POSITIVE),
    "random t": (lambda df: jax.random.t(jax.random.key(0), df), POSITIVE),
    "hessian trace": (lambda x: jnp.trace(jax.hessian(lambda x: jnp.sum(jnp.sin(x @ x)))(x)), M[0]),
    "jacfwd": (lambda x: jax.jacfwd(lambda x: jnp.tanh(x @ x.T))(x), X),
    "linearize": (lambda x: jax.linearize(lambda x: jnp.sin(x) * x, x)[1](x), X),
    "grad inside": (lambda x: jax.vmap(jax.grad(lambda r: jnp.sum(jnp.tanh(r) ** 3)))(x), X),
    "checkpointed scan": (
        lambda x: lax.scan(jax.checkpoint(lambda h, r: (jnp.tanh(h * r), h)), jnp.ones_like(x[0]), x)[1], X,
    ),
    "fori_loop": (lambda x: lax.fori_loop(0, 5, lambda i, h: jnp.sin(h) + x[i % 3], x[0]), X),
    "switch": (lambda x: lax.switch(jnp.argmax(x[0]) % 3, [jnp.sin, jnp.cos, jnp.tanh], x), X),
    "named_call": (lambda x: jax.named_call(jnp.sin, name="wave")(x), X),
    "pure function of a partial": (lambda x: jax.jit(functools.partial(jnp.dot, jnp.asarray(M)))(x.T), X),
}  # fmt: skip

TABLES = {
    "numpy": NUMPY, "linalg": LINALG, "fft": FFT, "special": SPECIAL, "stats": STATS, "nn": NN, "other": OTHER,
}  # fmt: skip
PROGRAMS = [
    Program(f"{table} {name}", fun, args) for table, rows in TABLES.items() for name, (fun, *args) in rows.items()
]


PROGRAMS.append(
    Program(
        "nn dot_product_attention",
        lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True),
        (normal(2, 5, 2, 4), normal(2, 5, 2, 4, seed=1), normal(2, 5, 2, 4, seed=2)),
        tolerance=1e-6,  # computes in float32
    )
)


@one_test_each(PROGRAMS)
def test_agrees_with_jax_grad(program):
    check(program)
