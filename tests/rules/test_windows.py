import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.check.cases.windows import CASES
from fbp.check.suite import check_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def kept(fun, *xs):
    """What the backward pass keeps."""
    return jax.tree.leaves(fbp.vjp(fun, *xs)[1])


IMAGE = jnp.asarray(np.random.default_rng(0).integers(0, 3, (1, 6, 6, 2)), jnp.float32)


def max_pool(x, window=(1, 2, 2, 1), strides=(1, 2, 2, 1), padding="VALID"):
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)


def test_in_a_tie_the_same_element_of_the_window_gets_the_cotangent_as_in_jax():
    for options in {}, {"strides": (1, 1, 1, 1)}, {"padding": "SAME", "window": (1, 3, 3, 1)}:
        fun = lambda x, options=options: jnp.sum(max_pool(x, **options) ** 2)
        np.testing.assert_array_equal(fbp.grad(fun)(IMAGE), jax.grad(fun)(IMAGE))


@pytest.mark.parametrize(
    "window, strides, padding", [(3, 2, "SAME"), (3, 1, "VALID"), (2, 1, ((0, 0), (1, 2), (0, 1), (0, 0)))]
)
def test_windows_of_several_images_that_overlap(window, strides, padding):
    """Which are searched some at a time on a CPU: ties, NaN and infinity among them; under vmap, too."""
    images = jnp.concatenate([IMAGE, -IMAGE, IMAGE.at[0, 2, 3].set(jnp.nan), IMAGE.at[0, 4].set(-jnp.inf)])
    fun = lambda x: max_pool(x, (1, window, window, 1), (1, strides, strides, 1), padding)
    (y, pullback), (y_jax, pullback_jax) = fbp.vjp(fun, images), jax.vjp(fun, images)
    bar = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    np.testing.assert_array_equal(y, y_jax)
    np.testing.assert_allclose(pullback(bar)[0], pullback_jax(bar)[0], rtol=1e-6)
    assert [array.dtype for array in kept(fun, images)] == [jnp.int8]
    two, of_bar = images.reshape(2, 2, *images.shape[1:]), bar.reshape(2, 2, *bar.shape[1:])
    x_bar = jax.vmap(lambda x, bar: fbp.vjp(fun, x)[1](bar)[0])(two, of_bar)
    np.testing.assert_allclose(x_bar.reshape(images.shape), pullback_jax(bar)[0], rtol=1e-6)


def test_a_search_that_reads_windows_which_overlap_is_not_merged_with_the_backward_pass():
    """It would be made once for each window that an element is in. A loop keeps the two apart."""
    loss = lambda x: jnp.sum(max_pool(x, (1, 3, 3, 1), (1, 2, 2, 1), "SAME") ** 2)
    program = str(jax.make_jaxpr(fbp.grad(loss))(jnp.concatenate([IMAGE, IMAGE])))
    assert ("scan" in program) == (jax.default_backend() == "cpu")
    assert "scan" not in str(jax.make_jaxpr(fbp.grad(lambda x: jnp.sum(max_pool(x))))(jnp.concatenate([IMAGE, IMAGE])))


def test_max_pooling_keeps_small_integers_only():
    (places,) = kept(max_pool, IMAGE)
    assert places.dtype == jnp.int8 and places.shape == (1, 3, 3, 2)


def test_sum_pooling_keeps_nothing():
    assert kept(lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"), IMAGE) == []


def test_cumulative_operations_in_both_directions():
    x = jnp.array([2.0, -1.0, 0.5, 3.0])
    for fun in (lax.cumsum, lax.cumprod, lax.cummax, lax.cumlogsumexp):
        for reverse in False, True:
            loss = lambda x, fun=fun, reverse=reverse: jnp.sum(fun(x, reverse=reverse) * jnp.arange(4.0))
            np.testing.assert_allclose(fbp.grad(loss)(x), jax.grad(loss)(x), rtol=1e-5)


@pytest.mark.parametrize("window", [(1, 2), (2, 3)])
@pytest.mark.parametrize("computation, init", [(lax.max, -np.inf), (lax.min, np.inf)])
def test_dilated_windows_which_jax_does_not_transpose(computation, init, window):
    x = jnp.asarray(np.random.default_rng(1).permutation(30).reshape(5, 6), jnp.float32)
    fun = lambda x: lax.reduce_window(x, init, computation, window, (1, 1), "VALID", window_dilation=(2, 2))
    bar = jnp.cos(fun(x))
    with pytest.raises(NotImplementedError):
        jax.vjp(fun, x)[1](bar)
    numeric = jnp.vdot(bar, jax.jvp(fun, (x,), (jnp.sin(x),))[1])  # the adjoint identity <y_bar, J ẋ> = <Jᵀ y_bar, ẋ>
    (x_bar,) = fbp.vjp(fun, x)[1](bar)
    np.testing.assert_allclose(jnp.vdot(x_bar, jnp.sin(x)), numeric, rtol=1e-5)
    tangent = lambda x_dot: jax.jvp(fun, (x,), (x_dot,))[1]  # reverse over forward
    np.testing.assert_allclose(fbp.vjp(tangent, x)[1](bar)[0], x_bar, rtol=1e-6)


def test_a_large_dilated_window_is_an_error_that_says_what_to_do():
    fun = lambda x: jnp.sum(lax.reduce_window(x, -jnp.inf, lax.max, (6, 6), (1, 1), "VALID", window_dilation=(1, 2)))
    with pytest.raises(NotImplementedError, match=r"reduce_window_max.*36 elements.*one axis after the other"):
        fbp.grad(fun)(jnp.ones((12, 12)))
