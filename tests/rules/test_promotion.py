"""The suite has dtypes never promoted silently (see conftest.py). Ranks neither, where a program says so."""

import jax
import numpy as np
import pytest

import fbp
from fbp.check.suite import chapters
from fbp.core import zeros


def backward(fun):
    def pulled(*xs):
        y, pullback = fbp.vjp(fun, *xs)
        x_bars = pullback(jax.tree.map(lambda y: zeros(jax.typeof(y)), y))
        return [x_bar for x_bar in jax.tree.leaves(x_bars) if x_bar.dtype != jax.dtypes.float0]

    return pulled


@pytest.mark.parametrize("chapter", chapters())
def test_a_backward_pass_promotes_no_rank_of_its_own(chapter):
    for case in chapters()[chapter]:
        xs = [make(np.random.default_rng(0), np.float32) for make in case.args]
        with jax.numpy_rank_promotion("raise"):
            try:
                jax.eval_shape(case.fun, *xs)
            except ValueError:  # the program itself promotes something
                continue
            jax.eval_shape(backward(case.fun), *xs)
