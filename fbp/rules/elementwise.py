"""Elementwise operations: y_i = f(x_i)  =>  x_bar_i = g_i f'(x_i), where g is the cotangent of y.

Where f' can be written with y it is: y is the next operation's input, so keeping it is usually free.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as p

from fbp import _compat
from fbp.core import Rule, Stopped, table, unbroadcast
from fbp.rules.common import as_complex, is_complex, keep_nothing, where, where_flowing


def _stopped_forward(site, *xs, **params):
    return Stopped(site.primitive.bind(*xs, **params)), ()


# The derivative is zero, or there is none: floor, stop_gradient.
stopped = Rule(_stopped_forward, lambda site, residuals, g, **_: [None] * len(site.avals))

# y = x, for the operations that say something about a value and do not change it.
identity = table(lambda g: g)


def share(choose, x, other):
    """The part of the cotangent of y = max(x, other) that is x's: all, none, or half of it in a tie. (Also for min.) y is
    chosen once more, from these very x: one from elsewhere might be rounded otherwise, and equal neither."""
    y = choose(x, other)
    none, half, whole = (lax.full_like(y, part) for part in (0, 0.5, 1))
    return where(x == y, where(other == y, half, whole), none)


def nonzero(x):
    """x, with ones for its zeros."""
    return where(x == 0, lax.full_like(x, 1), x)


def abs_bar(g, x):
    """y = |x|  =>  x_bar = ±g; for a complex x, g conj(x) / |x|."""
    if is_complex(x):
        return as_complex(g) * (lax.conj(x) / as_complex(nonzero(lax.abs(x))))
    return where(x >= 0, g, -g)


def _sign_forward(site, x):
    y = lax.sign(x)
    return (y, (x, y)) if is_complex(x) and _compat.COMPLEX_SIGN_HAS_DERIVATIVE else (Stopped(y), ())


def _sign_backward(site, residuals, g):
    """y = x / |x|: ẏ = i y Im(ẋ conj y) / |x|  =>  x_bar = i conj(y) Im(g y) / |x|, and 0 at 0."""
    x, y = residuals
    turned = lax.imag(g * y) / nonzero(lax.abs(x))
    return [lax.complex(lax.full_like(turned, 0), turned) * lax.conj(y)]


def asinh_slope(x):
    """1 / √(1 + x²): for a large x as 1 / |x| √(1 + x⁻²), where x² would overflow, and for a complex one as
    1 / √(1 + ix) √(1 - ix), which has the branch cuts of asinh."""
    if is_complex(x):
        a, b = lax.real(x), lax.imag(x)
        return lax.rsqrt(lax.complex(1 - b, a)) * lax.rsqrt(lax.complex(1 + b, -a))
    is_large = lax.abs(x) > 1
    inverse = 1 / where(is_large, x, lax.full_like(x, 1))
    small = where(is_large, inverse, x)
    return lax.rsqrt(1 + small * small) * where(is_large, lax.abs(inverse), lax.full_like(x, 1))


def quotient_divisor_bar(g, b, y, *, site):
    """y = a / b  =>  b_bar = -g y / b. By y rather than by a: the next operation keeps y anyway. The sum over the copies of
    a divisor that was broadcast, as that of a softmax, comes before the division."""
    return -(unbroadcast(g * y, site.avals[1]) / b)


def power_base_bar(g, a, b):
    """y = a^b  =>  a_bar = g b a^(b-1), and for an integer b, 0 where b = 0 whatever a is."""
    if b.dtype == a.dtype:
        return g * (b * lax.pow(a, b - lax.full_like(b, 1)))
    a, b = jnp.broadcast_arrays(a, lax.convert_element_type(b, a.dtype))
    return g * where(b == 0, lax.full_like(a, 0), nonzero(b) * lax.pow(a, b - lax.full_like(b, 1)))


def _polynomial_forward(site, x, *coefficients, **params):
    y = site.primitive.bind(x, *coefficients, **params)
    return y, (x, coefficients[1:] if site.needs[0] else None)


def _polynomial_backward(site, residuals, g, **params):
    """y = Σ c_k x^k  =>  x_bar = g Σ k c_k x^(k-1) and c_k_bar = g x^k, summed to the shape of c_k."""
    x, coefficients = residuals
    x_bar, bars, power = None, [], g
    if coefficients is not None:
        slopes = [c * k for k, c in enumerate(coefficients, 1)]
        slope = slopes[0] if len(slopes) == 1 else site.primitive.bind(x, *slopes, **params)
        x_bar = unbroadcast(g * slope, site.avals[0])
    for aval, wanted in zip(site.avals[1:], site.needs[1:], strict=True):
        bars.append(unbroadcast(power, aval) if wanted else None)
        power = power * x if any(site.needs[1:]) else power
    return [x_bar, *bars]


def integer_power_bar(g, x, *, y):
    """z = x^n  =>  x_bar = g n x^(n-1)."""
    if y == 0:
        return None
    return g if y == 1 else g * (y * (x if y == 2 else lax.integer_pow(x, y - 1)))


def convert_bar(g, *, site, sharding):
    """Back to the type of x, weak if that is; from complex to real by taking the real part."""
    (aval,) = site.avals
    return p.convert_element_type_p.bind(g, new_dtype=aval.dtype, weak_type=aval.weak_type, sharding=sharding)


def clamp_bars(g, low, x, high):
    zero = lax.full_like(g, 0)
    return [
        where((low > x) & (low < high), g, zero),
        where((x > low) & (x < high), g, zero),
        where(high < x, g, zero),
    ]


def _select_forward(site, which, *cases, **params):
    return site.primitive.bind(which, *cases, **params), which


def _select_backward(site, which, g, **_):
    """y = cases[which]  =>  cases_bar[i] = g where which = i, else 0."""
    zero = lax.full_like(g, 0)
    n = len(site.avals) - 1
    return [
        None,
        *(
            lax.select_n(which, *(g if j == i else zero for j in range(n))) if site.needs[1 + i] else None
            for i in range(n)
        ),
    ]


def _device_put_backward(site, _, *y_bars, devices, srcs, copy_semantics):
    """y = x, in another place  =>  x_bar = y_bar, back where x was."""
    host = jax.memory.Space.Host
    srcs = [host if src is None and x.memory_space == host else src for src, x in zip(srcs, site.avals, strict=True)]

    def back(places):
        pick = lambda values: tuple(values[i] for i in places)
        there_and_back = {"devices": pick(srcs), "srcs": pick(devices), "copy_semantics": pick(copy_semantics)}
        return p.device_put_p.bind(*pick(y_bars), **there_and_back)

    return where_flowing(y_bars, back)


def reshard_bar(g, *, site, concrete_mesh):
    """y = x, elsewhere  =>  x_bar = g, where x is."""
    sharding = site.avals[0].sharding
    with jax.sharding.use_abstract_mesh(sharding.mesh):
        return _compat.reshard_p.bind(g, dst_sharding=sharding, concrete_mesh=concrete_mesh)


def product(g, factor, aval, out_dtype):
    """y = a b  =>  a_bar = g b. The factors of a product in another dtype may be of two."""
    return lax.mul(g, factor, out_dtype=None if out_dtype is None else aval.dtype)


RULES = {
    # Arithmetic
    p.neg_p: table(lambda g: -g),
    p.add_p: table(lambda g: g,
                   lambda g: g),
    p.add_jaxvals_p: table(lambda g: g,
                           lambda g: g),
    p.sub_p: table(lambda g: g,
                   lambda g: -g),
    p.mul_p: table(lambda g, b, *, site, out_dtype: product(g, b, site.avals[0], out_dtype),
                   lambda g, a, *, site, out_dtype: product(g, a, site.avals[1], out_dtype)),
    p.div_p: table(lambda g, b: g / b,
                   quotient_divisor_bar),
    p.rem_p: table(lambda g: g,
                   lambda g, a, b: -g * (lax.sign(a / b) * lax.floor(lax.abs(a / b)))),
    p.abs_p: table(abs_bar),
    p.sign_p: Rule(_sign_forward, _sign_backward),
    # Powers and roots
    p.square_p: table(lambda g, x: g * (2 * x)),
    p.integer_pow_p: table(integer_power_bar),
    p.pow_p: table(power_base_bar,
                   lambda g, a, y: g * (lax.log(nonzero(a)) * y)),
    p.sqrt_p: table(lambda g, y: g * (0.5 / y)),
    p.rsqrt_p: table(lambda g, x, y: g * (-0.5 * (y / x))),
    p.cbrt_p: table(lambda g, y: g * (lax.integer_pow(y, -2) / 3)),
    # Exponentials and logarithms
    p.exp_p: table(lambda g, y: g * y),
    p.exp2_p: table(lambda g, y: lax.log(lax.full_like(y, 2)) * (g * y)),
    p.expm1_p: table(lambda g, x: g * lax.exp(x)),  # y + 1 would have lost the digits of a small exp x
    p.log_p: table(lambda g, x: g / x),
    p.log1p_p: table(lambda g, x: g / (1 + x)),
    p.logistic_p: table(lambda g, y: g * (y * (1 - y))),
    # Trigonometric and hyperbolic functions. Factored, (1 - y) (1 + y) is exact near ±1, where 1 - y² cancels.
    p.sin_p: table(lambda g, x: g * lax.cos(x)),
    p.cos_p: table(lambda g, x: -(g * lax.sin(x))),
    p.tan_p: table(lambda g, y: g * (1 + y * y)),
    p.asin_p: table(lambda g, x: g * lax.rsqrt((1 - x) * (1 + x))),
    p.acos_p: table(lambda g, x: -g * lax.rsqrt((1 - x) * (1 + x))),
    p.atan_p: table(lambda g, x: g / (1 + x * x)),
    p.atan2_p: table(lambda g, a, b: g * (b / (a * a + b * b)),
                     lambda g, a, b: g * (-a / (a * a + b * b))),
    p.sinh_p: table(lambda g, x: g * lax.cosh(x)),
    p.cosh_p: table(lambda g, x: g * lax.sinh(x)),
    p.tanh_p: table(lambda g, y: g * ((1 - y) * (1 + y))),
    p.asinh_p: table(lambda g, x: g * asinh_slope(x)),
    p.acosh_p: table(lambda g, x: g * (lax.rsqrt(x - 1) * lax.rsqrt(x + 1))),
    p.atanh_p: table(lambda g, x: g / (1 - x) / (1 + x)),
    # Choices
    p.max_p: table(lambda g, a, b: g * share(lax.max, a, b),
                   lambda g, a, b: g * share(lax.max, b, a)),
    p.min_p: table(lambda g, a, b: g * share(lax.min, a, b),
                   lambda g, a, b: g * share(lax.min, b, a)),
    p.clamp_p: table(lambda g, a, b, c: clamp_bars(g, a, b, c)[0],
                     lambda g, a, b, c: clamp_bars(g, a, b, c)[1],
                     lambda g, a, b, c: clamp_bars(g, a, b, c)[2]),
    p.select_n_p: Rule(_select_forward, _select_backward),
    # Complex numbers. A cotangent is transposed, never conjugated, so that z ↦ z² has z_bar = 2 z g.
    p.complex_p: table(lambda g: lax.real(g),
                       lambda g: -lax.imag(g)),
    p.real_p: table(lambda g: as_complex(g)),
    p.imag_p: table(lambda g: lax.complex(lax.full_like(g, 0), -g)),
    p.conj_p: table(lambda g, *, site: lax.conj(g) if is_complex(site.avals[0]) else lax.real(g)),
    # Types and places
    p.convert_element_type_p: table(convert_bar),
    p.reduce_precision_p: table(lambda g, *, exponent_bits, mantissa_bits:
                                lax.reduce_precision(g, exponent_bits, mantissa_bits)),
    p.device_put_p: Rule(keep_nothing, _device_put_backward),
    p.copy_p: table(lambda g: p.copy_p.bind(g)),  # an array of its own: neither may be donated for the other
    p.name_p: identity,
    _compat.layout_constraint_p: table(lambda g, *, layout: _compat.layout_constraint_p.bind(g, layout=layout)),
    _compat.reshard_p: table(reshard_bar),
    p.sharding_constraint_p: table(lambda g, *, sharding: lax.with_sharding_constraint(g, sharding)),
    # Without a derivative
    p.nextafter_p: table(lambda g: g, None),
    **dict.fromkeys([p.stop_gradient_p, p.floor_p, p.ceil_p, p.round_p, p.bitcast_convert_type_p], stopped),
    # Since jax 0.12
    **_compat.where_known({
        "log2_p": table(lambda g, x: g / (x * lax.log(lax.full_like(x, 2)))),
        "one_minus_square_p": table(lambda g, x: g * (-2 * x)),
        "polynomial_p": Rule(_polynomial_forward, _polynomial_backward),
    }),
}  # fmt: skip
