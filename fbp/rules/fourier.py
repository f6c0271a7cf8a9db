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
    """y_k = Σ_j x_j e^{-2πi jk/n} for k ≤ n/2, and real x  =>  x_bar_j = Re Σ_k g_k e^{-2πi jk/n}: n times the inverse
    transform to real numbers, which counts the k that have a mirror image twice, of g*_k / m_k."""
    scale = math.prod(lengths) / _images(g, lengths)
    return lax.fft(lax.conj(g) * scale.astype(g.dtype), lax.FftType.IRFFT, lengths)


def _hermitian_bar(g, x, lengths):
    """y_j = 1/n Re Σ_k m_k x_k e^{2πi jk/n}  =>  x_bar_k = m_k/n Σ_j g_j e^{2πi jk/n}."""
    scale = _images(x, lengths) / math.prod(lengths)
    return scale.astype(x.dtype) * lax.conj(lax.fft(g, lax.FftType.RFFT, lengths))


def _images(half, lengths):
    """m_k: 2, but 1 for those k along the last axis, 0 and n/2, that have no mirror image."""
    k = lax.broadcasted_iota(jnp.int32, half.shape, len(half.shape) - 1)
    return jnp.where((k > 0) & (k < (lengths[-1] + 1) // 2), 2.0, 1.0)


RULES = {p.fft_p: table(fft_bar)}
