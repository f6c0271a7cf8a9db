import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp import _compat
from fbp.check.cases.convolutions import CASES
from fbp.check.suite import check_case
from fbp.rules import choices
from fbp.rules.convolutions import convolution

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def normal(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), jnp.float32)


def grouped(groups):
    return lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", None, None, CHANNELS_LAST, groups)


def compare(fun, x, w, expected):
    """Value and cotangents under `fbp.vjp`, where algorithms are chosen, and under `jax.vjp`; and which were chosen."""
    chosen = set()

    def choose(part, conv):
        chosen.add(choices.convolution(part, conv))
        return choices.convolution(part, conv)

    rules = fbp.RULES | {lax.conv_general_dilated_p: convolution(choose)}
    (y, pullback), (y_jax, pullback_jax) = fbp.vjp(fun, x, w, rules=rules), jax.vjp(fun, x, w)
    bar = jnp.cos(3 * y_jax)
    for a, b in zip((y, *pullback(bar)), (y_jax, *pullback_jax(bar)), strict=True):
        np.testing.assert_allclose(
            a.astype(np.float32), b.astype(np.float32), rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max())
        )
    assert chosen == expected


@pytest.mark.parametrize(
    "groups, features, name", [(1, (3, 4), "xla"), (2, (4, 6), "grouped"), (3, (3, 6), "depthwise")]
)
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_every_algorithm_is_the_same_convolution(groups, features, name, strides):
    paddings, dilations, sizes = ("SAME", ((2, -1), (0, 3))), ((1, 1), (2, 1)), ((1, 1), (3, 2))
    for padding, dilation, size in itertools.product(paddings, dilations, sizes):
        x, w = normal(2, 7, 6, features[0]), normal(*size, features[0] // groups, features[1])
        fun = lambda x, w, padding=padding, dilation=dilation: lax.conv_general_dilated(
            x, w, strides, padding, None, dilation, CHANNELS_LAST, groups
        )
        compare(fun, x, w, {"product" if groups == 1 and size == (1, 1) and padding == "SAME" else name})


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 3)], ids=str)
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 1), (3, 2)), ((-1, 2), (1, -1))], ids=str)
def test_transposed_convolutions(size, padding):
    x, w = normal(2, 4, 5, 3), normal(*size, 3, 4)
    fun = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), padding, (2, 3), None, CHANNELS_LAST)
    compare(fun, x, w, {"xla", "gathered"})


@pytest.mark.parametrize("name, strides", [("taller", (1, 1)), ("even", (1, 1)), ("even", (2, 3))])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, -1), (0, 3))], ids=str)
def test_of_one_row_or_channel_more_in_every_version_of_jax(name, strides, padding):
    """With NaN and infinity in the last row, which the row that is dropped sees too."""
    x, w = normal(2, 6, 5, 3).at[0, -1, 2, 1].set(jnp.inf).at[1, -1, 0, 0].set(jnp.nan), normal(3, 2, 3, 4)
    fun = lambda x, w: lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=CHANNELS_LAST)
    choose = lambda part, conv: "xla" if part == "kernel_bar" else name
    rules = fbp.RULES | {lax.conv_general_dilated_p: convolution(choose)}
    (y, pullback), (y_jax, pullback_jax) = fbp.vjp(fun, x, w, rules=rules), jax.vjp(fun, x, w)
    for a, b in zip((y, *pullback(y_jax)), (y_jax, *pullback_jax(y_jax)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "rows, size, dilation", [(16, (3, 3), (1, 1)), (9, (2, 3), (1, 2)), (8, (4, 5), (2, 1))], ids=str
)
def test_taller_by_a_row_that_is_dropped(rows, size, dilation):
    x, w = normal(48, rows, 20, 32), normal(*size, 32, 64)
    fun = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", None, dilation, CHANNELS_LAST)
    compare(fun, x, w, {"xla", "taller"} if _compat.CONVOLVES_ON_ONE_CORE else {"xla"})


@pytest.mark.parametrize("features, strides", [((3, 24), (1, 1)), ((7, 32), (2, 3)), ((32, 3), (1, 1))], ids=str)
def test_even_by_a_channel_of_zeros(features, strides):
    x, w = normal(2, 9, 8, features[0]), normal(3, 2, *features)
    fun = lambda x, w: lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=CHANNELS_LAST)
    compare(fun, x, w, {"xla", "even"} if _compat.CONVOLVES_ON_ONE_CORE else {"xla"})


def test_what_is_added_up_in_another_dtype_is_left_to_xla():
    x, w = normal(2, 4, 4, 3).astype(jnp.bfloat16), normal(3, 3, 1, 3).astype(jnp.bfloat16)
    compare(grouped(3), x, w, {"xla"})


@pytest.mark.parametrize("groups", [{}, {"feature_group_count": 3}, {"batch_group_count": 2}], ids=str)
def test_the_result_may_be_of_a_wider_dtype_than_its_factors(groups):
    channels = 3 // groups.get("feature_group_count", 1)
    x, w = normal(2, 4, 4, 3).astype(jnp.bfloat16), normal(3, 3, channels, 6).astype(jnp.bfloat16)
    fun = lambda x, w: lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=CHANNELS_LAST, preferred_element_type=jnp.float32, **groups
    )
    compare(fun, x, w, {"xla"})


@pytest.mark.parametrize("groups, dilation", [(1, (1, 1)), (3, (1, 1)), (1, (3, 1))])
def test_a_kernel_that_nowhere_fits_has_zeros_for_a_cotangent(groups, dilation):
    x, w = normal(2, 3, 4, 3), normal(4 if dilation == (1, 1) else 2, 2, 3 // groups, 3)
    fun = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "VALID", None, dilation, CHANNELS_LAST, groups)
    y, pullback = fbp.vjp(fun, x, w)
    assert y.size == 0
    for bar, primal, theirs in zip(pullback(y), (x, w), jax.vjp(fun, x, w)[1](y), strict=True):
        np.testing.assert_array_equal(bar, jnp.zeros_like(primal))
        np.testing.assert_array_equal(bar, theirs)


def test_an_algorithm_can_be_forced():
    x, w = normal(2, 5, 5, 4), normal(3, 3, 1, 4)
    rules = fbp.RULES | {lax.conv_general_dilated_p: convolution(lambda part, conv: "xla")}
    expected = jax.vjp(grouped(4), x, w)[1](jnp.ones((2, 5, 5, 4)))
    for a, b in zip(fbp.vjp(grouped(4), x, w, rules=rules)[1](jnp.ones((2, 5, 5, 4))), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_under_transformations():
    x, w = normal(3, 2, 4, 3, 4), normal(2, 2, 2, 6)
    fun = lambda x, w: jnp.sum(grouped(2)(x, w) ** 3)
    for transform in (
        lambda grad: jax.vmap(grad(fun, (0, 1)), (0, None)),
        lambda grad: grad(lambda x, w: jnp.sum(jax.vmap(fun, (0, None))(x, w)), (0, 1)),
        lambda grad: lambda x, w: grad(lambda w: jnp.sum(grad(fun, 1)(x[0], w) ** 2))(w),
    ):
        ours, theirs = (jax.tree.leaves(jax.jit(transform(grad))(x, w)) for grad in (fbp.grad, jax.grad))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("groups", [1, 2, 32])
def test_of_a_batch_that_has_no_number_yet(groups):
    """As a program is exported for any number of images."""
    (n,) = jax.export.symbolic_shape("n")
    x, w = normal(5, 9, 9, 32), normal(3, 3, 32 // groups, 32)
    fun = lambda x, w: jnp.sum(jnp.sin(grouped(groups)(x, w)))
    shapes = jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype), jax.ShapeDtypeStruct(w.shape, w.dtype)
    exported = jax.export.export(jax.jit(fbp.grad(fun, (0, 1))))(*shapes)
    for a, b in zip(exported.call(x, w), jax.grad(fun, (0, 1))(x, w), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("groups", [2, 4])
def test_on_many_devices(groups):
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    x, w, spec = normal(4, 5, 5, 4), normal(3, 3, 4 // groups, 4), jax.sharding.PartitionSpec
    mapped = jax.shard_map(grouped(groups), mesh=mesh, in_specs=(spec("i"), spec()), out_specs=spec("i"))
    loss = lambda x, w: jnp.sum(jnp.sin(mapped(x, w)))
    ours, theirs = (jax.jit(grad(loss, (0, 1)))(x, w) for grad in (fbp.grad, jax.grad))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
