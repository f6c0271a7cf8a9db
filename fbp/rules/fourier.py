"""Fourier transforms. Linear, and symmetric: y_k = Σ_j x_j e^{-2πi jk/n} has the same matrix read either way."""

import math

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as p

from fbp.core import table


def fft_bar(g, *, site, fft_type, fft_lengths):
    """y = F x  =>  x_bar = Fᵀ g = F g. The transforms of real arrays are F behind, or before, a change of size."""
    x, n = site.avals[0], fft_lengths
    if fft_type in (lax.FftType.FFT, lax.FftType.IFFT):
        return lax.fft(g, fft_type, n)
    if fft_type == lax.FftType.RFFT:
        return _half_bar(g, n)
    return _hermitian_bar(g, x, n)


def _half_bar(g, lengths):
    """y = the first ⌊n/2⌋ + 1 entries, along the last axis, of F x for real x  =>  x_bar = Re F (g, 0)."""
    missing = lengths[-1] - g.shape[-1]
    g = lax.pad(g, jnp.zeros((), g.dtype), [*[(0, 0, 0)] * (g.ndim - 1), (0, missing, 0)])
    return lax.real(lax.fft(g, lax.FftType.FFT, lengths))


def _hermitian_bar(g, x, lengths):
    """y_j = 1/n Re Σ_k m_k x_k e^{2πi jk/n}, where m_k = 2 but 1 for those k, 0 and n/2, that have no mirror image
    =>  x_bar_k = m_k/n Σ_j g_j e^{2πi jk/n}."""
    n = lengths[-1]
    k = lax.broadcasted_iota(jnp.int32, x.shape, len(x.shape) - 1)
    mirrored = (k > 0) & (k < (n + 1) // 2)
    scale = jnp.where(mirrored, 2 / math.prod(lengths), 1 / math.prod(lengths)).astype(g.dtype)
    return scale.astype(x.dtype) * lax.conj(lax.fft(g, lax.FftType.RFFT, lengths))


RULES = {p.fft_p: table(fft_bar)}
