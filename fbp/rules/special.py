"""Special functions, with their derivatives as in Abramowitz & Stegun (1964), chapters 6, 7, 9 and 26."""

import math

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as p

from fbp.core import table
from fbp.rules.common import where


def unknown(g, *, site):
    """The column of an input with respect to which no derivative is known in closed form, in JAX either."""
    raise ValueError(f"{site} has no derivative with respect to its parameters, only to x. stop_gradient them.")


def igamma_slope(a, x):
    """∂P(a, x)/∂x = x^(a-1) e^-x / Γ(a)."""
    return lax.exp((a - 1) * lax.log(x) - x - lax.lgamma(a))


def beta_slope(a, b, x):
    """∂I_x(a, b)/∂x = x^(a-1) (1-x)^(b-1) / B(a, b)."""
    log_beta = lax.lgamma(a) + lax.lgamma(b) - lax.lgamma(a + b)
    return lax.exp((b - 1) * lax.log1p(-x) + (a - 1) * lax.log(x) - log_beta)


def i1e_bar(g, x, y):
    """y = e^-|x| I₁(x)  =>  y' = e^-|x| I₀(x) - y (sign x + 1/x), and 1/2 at 0."""
    tiny = ~(lax.abs(x) > jnp.finfo(x.dtype).eps)  # or nan, where JAX says 1/2 as well
    x = where(tiny, lax.full_like(x, 1), x)
    slope = lax.bessel_i0e(x) - y * (lax.sign(x) + 1 / x)
    return g * where(tiny, lax.full_like(x, 0.5), slope)


def gamma_sample_bar(g, b, y, *, log_space):
    """y ~ Gamma(a, 1), or its logarithm  =>  a_bar = g ∂y/∂a at the same quantile (Figurnov et al. 2018, eq. 8)."""
    sample = jnp.maximum(lax.exp(y), jnp.finfo(y.dtype).tiny) if log_space else y
    slope = lax.random_gamma_grad(b, sample)  # pyright: ignore[reportCallIssue]
    return g * (slope / sample if log_space else slope)


RULES = {
    p.erf_p: table(lambda g, x: (2 / math.sqrt(math.pi)) * (g * lax.exp(-(x * x)))),
    p.erfc_p: table(lambda g, x: (-2 / math.sqrt(math.pi)) * (g * lax.exp(-(x * x)))),
    p.erf_inv_p: table(lambda g, y: (math.sqrt(math.pi) / 2) * (g * lax.exp(y * y))),
    p.lgamma_p: table(lambda g, x: g * lax.digamma(x)),
    p.digamma_p: table(lambda g, x: g * lax.polygamma(lax.full_like(x, 1), x)),
    p.polygamma_p: table(unknown,
                         lambda g, a, b: g * lax.polygamma(a + 1, b)),
    p.igamma_p: table(lambda g, a, b: g * lax.igamma_grad_a(a, b),
                      lambda g, a, b: g * igamma_slope(a, b)),
    p.igammac_p: table(lambda g, a, b: -g * lax.igamma_grad_a(a, b),
                       lambda g, a, b: -g * igamma_slope(a, b)),
    p.regularized_incomplete_beta_p: table(unknown,
                                           unknown,
                                           lambda g, a, b, c: g * beta_slope(a, b, c)),
    p.random_gamma_p: table(None,
                            gamma_sample_bar),
    p.bessel_i0e_p: table(lambda g, x, y: g * (lax.bessel_i1e(x) - lax.sign(x) * y)),
    p.bessel_i1e_p: table(i1e_bar),
}  # fmt: skip
