"""Cases for `fbp.rules.elementwise`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from fbp.check.case import Case, fixed, integers, normal, uniform

X = (normal(2, 3),)
XY = (normal(2, 3), normal(2, 3))
POSITIVE = (uniform(0.2, 2, 2, 3),)
UNIT = (uniform(-0.9, 0.9, 2, 3),)
TIES = (fixed([1.0, 2.0, 3.0, 0.0, -0.0]), fixed([1.0, 3.0, 2.0, 0.0, 0.0]))
EXTREMES = (fixed([0.0, -0.0, 1.0, jnp.inf, -jnp.inf]),)


def resharded(x):
    """sin x, after a change of where its rows are: from all on each device to some on each."""
    mesh = jax.make_mesh((len(jax.devices()),), ("i",), axis_types=(AxisType.Explicit,))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        x = jax.sharding.reshard(x, NamedSharding(mesh, P()))
        return jax.sharding.reshard(
            jnp.sin(jax.sharding.reshard(x, NamedSharding(mesh, P("i")))), NamedSharding(mesh, P())
        )


def near(a, b):
    """a times the next number to a, for JAX, which differentiates `nextafter` since 0.12."""
    start, end = lax.stop_gradient((a, b))
    return a * (a + (lax.nextafter(start, end) - start))


def real_of(fun):
    return lambda x, y: lax.real(fun(lax.complex(x, y)))


def acosh(z):
    """For JAX, whose derivative of `lax.acosh` has the wrong sign in half of the plane in 0.10.2."""
    return jnp.log(z + jnp.sqrt(z - 1) * jnp.sqrt(z + 1))


CASES = [
    Case("neg", lax.neg, X, complex=True),
    Case("add", lax.add, XY, complex=True),
    Case("add_any", lambda x: jax.vjp(lambda x: jnp.sin(x) * x, x)[1](x)[0], X),
    Case("layout_constraint", jax.jit(lambda x: with_layout_constraint(jnp.sin(x), Layout((0, 1)))), X),
    Case("reshard", resharded, (normal(4, 2),)),
    Case(
        "sharding_constraint", lambda x: x * lax.with_sharding_constraint(x, SingleDeviceSharding(jax.devices()[0])), X
    ),
    Case("add/broadcast", lambda x, s: s + x, (normal(2, 3), normal()), complex=True),
    Case("sub", lax.sub, XY, complex=True),
    Case("sub/broadcast", lambda x, s: s - x, (normal(2, 3), normal(1, 3)), complex=True),
    Case("mul", lax.mul, XY, complex=True),
    Case("mul/scalar", lambda x: 2.0 * x, X, complex=True),
    Case("mul/broadcast", lambda x, s: x * s, (normal(2, 3), normal()), complex=True),
    Case("mul/empty", lax.mul, (normal(0, 3), normal(0, 3))),
    Case("div", lax.div, (normal(2, 3), uniform(0.5, 2, 2, 3)), complex=True),
    Case("rem", lax.rem, (normal(2, 3), uniform(0.3, 1, 2, 3))),
    Case("abs", lax.abs, X, complex=True),
    Case("abs/zero", lax.abs, (fixed([0.0, -0.0, -1.0]),), complex=True, second=False),
    Case("square", lax.square, X, complex=True),
    Case("integer_pow/3", lambda x: lax.integer_pow(x, 3), X, complex=True),
    Case("integer_pow/2", lambda x: lax.integer_pow(x, 2), X, complex=True),
    Case("integer_pow/-2", lambda x: lax.integer_pow(x, -2), POSITIVE, complex=True),
    Case("integer_pow/zero", lambda x: lax.integer_pow(x, 2) + lax.integer_pow(x, 1), (fixed([0.0, 1.0]),)),
    Case("pow", lax.pow, (uniform(0.2, 2, 2, 3), normal(2, 3)), complex=True),
    Case("pow/scalar", lambda x: jnp.power(x, 2.5), POSITIVE),
    Case("pow/integer", lambda x, n: lax.pow(x, n), (normal(2, 3), integers(-2, 4, 2, 3))),
    Case("pow/zero", lambda x, y: lax.pow(x, y), (fixed([0.0, 0.0, 2.0]), fixed([0.0, 2.0, 0.0])), second=False),
    Case("pow/integer zero", lambda x: lax.pow(x, jnp.array([0, 1, 2])), (fixed([0.0, 0.0, 0.0]),), second=False),
    Case("sqrt", lax.sqrt, POSITIVE, complex=True),
    Case("sqrt/extremes", lax.sqrt, (fixed([0.0, jnp.inf]),), second=False),
    Case("rsqrt", lax.rsqrt, POSITIVE, complex=True),
    Case("cbrt", lax.cbrt, X),
    Case("exp", lax.exp, X, complex=True),
    Case("exp/extremes", lax.exp, EXTREMES),
    Case("exp2", lax.exp2, X, complex=True),
    Case("expm1", lax.expm1, X, complex=True),
    Case("log", lax.log, POSITIVE, complex=True),
    Case("log/extremes", lax.log, (fixed([0.0, jnp.inf]),), second=False),
    Case("log1p", lax.log1p, POSITIVE, complex=True),
    Case("log2", jnp.log2, POSITIVE),
    Case(
        "nextafter", lambda a, b: a * lax.nextafter(a, b), (normal(4),) * 2, reference=near, adjoint=False, second=False
    ),
    Case("one_minus_square", getattr(lax, "one_minus_square", lambda x: 1 - x * x), X, complex=True),  # since jax 0.11
    Case("logistic", lax.logistic, X, complex=True),
    Case("logistic/extremes", lax.logistic, (fixed([-100.0, 100.0, jnp.inf, -jnp.inf]),)),
    Case("sin", lax.sin, X, complex=True),
    Case("cos", lax.cos, X, complex=True),
    Case("tan", lax.tan, X, complex=True),
    Case("asin", lax.asin, UNIT, complex=True),
    Case("acos", lax.acos, UNIT, complex=True),
    Case("atan", lax.atan, X, complex=True),
    Case("atan2", lax.atan2, XY),
    Case("sinh", lax.sinh, X, complex=True),
    Case("cosh", lax.cosh, X, complex=True),
    Case("tanh", lax.tanh, X, complex=True),
    Case("tanh/extremes", lax.tanh, (fixed([-20.0, 8.0, jnp.inf, -jnp.inf]),)),
    Case("asinh", lax.asinh, X, complex=True),
    Case("acosh", lax.acosh, (uniform(1.2, 3, 2, 3),)),
    Case("acosh/complex", real_of(lax.acosh), XY, low=False, adjoint=False, reference=real_of(acosh)),
    Case("atanh", lax.atanh, UNIT),
    Case("max", lax.max, XY),
    Case("max/ties", lax.max, TIES),
    Case("max/scalar", lambda x: lax.max(x, lax.full_like(x, 0.0)), (fixed([0.0, 1.0, -1.0]),)),
    Case("max/nan", lax.max, (fixed([jnp.nan, 1.0]), fixed([1.0, jnp.nan])), second=False),
    Case("min", lax.min, XY),
    Case("min/ties", lax.min, TIES),
    Case("clamp", lax.clamp, (fixed([-0.5, -0.5, -0.5]), fixed([-1.0, 0.0, 2.0]), fixed([0.5, 0.5, 0.5]))),
    Case("clamp/scalar", lambda x: lax.clamp(-0.5, x, 0.5), X, low=False),
    Case("clamp/ties", lambda x: lax.clamp(0.0, x, 1.0), (fixed([0.0, 1.0, 0.5]),), low=False),
    Case("select_n", lambda x, y: lax.select_n(x > y, x, y), XY, complex=False),
    Case("select_n/scalar", lambda x, y: lax.select_n(True, x, y), XY, complex=True),
    Case("select_n/three", lambda i, *xs: lax.select_n(i, *xs), (integers(0, 3, 4), normal(4), normal(4), normal(4))),
    Case(
        "where/nan guarded", lambda x: jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1)), 0), (fixed([-1.0, 0.0, 2.0]),)
    ),
    Case("complex", lax.complex, XY, low=False),
    Case("real", lambda x: lax.real(lax.complex(x, 2 * x) ** 2), X, low=False),
    Case("imag", lambda x: lax.imag(lax.complex(x, 2 * x) ** 2), X, low=False),
    Case("conj", lambda x, y: lax.imag(lax.conj(lax.complex(x, y)) * lax.complex(x, y * y)), XY, low=False),
    Case("conj/real", lambda x: lax.real(lax.conj_p.bind(x, input_dtype=x.dtype)), X, low=False),
    Case("convert_element_type", lambda x: lax.convert_element_type(x, jnp.float16), X, second=False, adjoint=False),
    Case(
        "convert_element_type/complex",
        lambda x: jnp.abs(x.astype(jnp.complex64) * (1 + 1j)),
        X,
        low=False,
        second=False,
        adjoint=False,
    ),
    Case("reduce_precision", lambda x: lax.reduce_precision(x, 8, 7), X, second=False, adjoint=False),
    Case("device_put", lambda x, y: jax.device_put((x * y, y))[0] * x, XY),
    Case("copy", lambda x: jnp.copy(x) * x, X),
    Case("name", lambda x: checkpoint_name(x * x, "square") * x, X),
    Case("stop_gradient", lambda x: lax.stop_gradient(x * x) * x, X),
    Case("sign", lambda x: lax.sign(x) * x, X, complex=True),
    Case("floor", lambda x: lax.floor(x) * x, X),
    Case("ceil", lambda x: lax.ceil(x) * x, X),
    Case("round", lambda x: lax.round(x) * x, X),
    Case("bitcast", lambda x: lax.bitcast_convert_type(x, x.dtype) * x, X),
    Case("jax.nn", lambda x: jax.nn.gelu(x) + jax.nn.silu(x) * jax.nn.softplus(x) + jax.nn.elu(x) + jax.nn.selu(x), X),
]

if hasattr(lax, "polynomial"):  # since jax 0.12
    polynomial: Any = vars(lax)["polynomial"]
    CASES += [
        Case("polynomial", lambda x, a, b: polynomial(x, [a, b, 2.0, a * b]), (normal(4),) * 3),
        Case("polynomial/broadcast", lambda x, a, b: polynomial(x, [b, a, b]), (normal(3, 4), normal(3, 1), normal())),
    ]
