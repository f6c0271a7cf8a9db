import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import hijax as internal
from jax.experimental import hijax

import fbp
from fbp.check.cases.hijax import CASES, Base
from fbp.check.suite import check_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


HAS_BOXES = pytest.mark.skipif(not hasattr(internal, "Box"), reason="jax 0.12 has none")


@HAS_BOXES
@pytest.mark.parametrize("jit", [lambda fun: fun, jax.jit])
def test_a_mutable_box_is_read_and_written_without_cotangents(jit):
    def fun(box, x):
        box.set(box.get() + jax.lax.stop_gradient(2 * x))
        return x * box.get()

    results = []
    for m in jax, fbp:
        box = internal.Box(1.0)
        results.append((m.grad(jit(functools.partial(fun, box)))(3.0), box.get()))
    assert results[0] == results[1] == (7.0, 7.0)


@HAS_BOXES
def test_a_differentiated_value_is_not_put_into_a_box():
    box = internal.Box(1.0)

    def fun(x):
        box.set(x)
        return x

    with pytest.raises(ValueError, match=r"'box_set'.*or to a box.*stop_gradient the value"):
        fbp.grad(fun)(3.0)


class Bits:
    """A number as another type: what JAX calls a hi type, whose cotangent is a plain array."""

    def __init__(self, value):
        self.value = value


class BitsType(hijax.HiType):
    def __hash__(self):
        return hash(BitsType)

    def __eq__(self, other):
        return isinstance(other, BitsType)

    def lo_ty(self):
        return [jax.core.ShapedArray((), jnp.dtype("float32"))]

    def lower_val(self, hi_val):
        return [hi_val.value]

    def raise_val(self, *lo_vals):
        return Bits(*lo_vals)

    def to_tangent_aval(self):
        return jax.core.ShapedArray((), jnp.dtype("float32"))


hijax.register_hitype(Bits, lambda _: BitsType())


def _converting(name, start, end, expand):
    class Convert(Base):
        def __init__(self):
            self.in_avals, self.out_aval, self.params = (start,), end, {}
            super().__init__()

        def expand(self, x):
            return expand(x)

        def vjp_fwd(self, nzs_in, x):
            return self(x), None

        def vjp_bwd_retval(self, _, g):
            return (3 * g,)

    Convert.__name__ = name
    return Convert()


NUMBER = jax.core.ShapedArray((), jnp.dtype("float32"))
to_bits = _converting("ToBits", NUMBER, BitsType(), Bits)
from_bits = _converting("FromBits", BitsType(), NUMBER, lambda bits: bits.value)


@pytest.mark.parametrize("jit", [lambda fun: fun, jax.jit])
def test_cotangents_flow_through_values_of_a_type_of_its_own(jit):
    fun = jit(lambda x: jnp.sin(from_bits(to_bits(x))))
    x = jnp.float32(0.5)
    np.testing.assert_allclose(fbp.grad(fun)(x), jax.grad(fun)(x), rtol=1e-6)


@pytest.mark.parametrize("jit", [lambda fun: fun, jax.jit])
def test_a_value_of_a_type_of_its_own_has_a_gradient(jit):
    fun = jit(lambda bits, n: from_bits(bits) ** 2 + from_bits(bits) * n)
    bits = Bits(jnp.float32(0.5))
    expected = jax.grad(fun)(bits, 2.0)
    assert fbp.grad(fun)(bits, 2.0) == expected == 9.0
    y, pullback = fbp.vjp(fun, bits, 2.0)
    np.testing.assert_allclose((y, *pullback(1.0)), (1.25, 9.0, 0.5))
