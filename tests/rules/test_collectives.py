import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fbp
from fbp.check.cases.collectives import CASES
from fbp.check.suite import check_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_jax(case):
    check_case(case, "float64")


def along_examples(fun):
    """The gradient of each example's result with respect to each example."""
    return jax.vmap(fbp.grad(fun), axis_name="i")(jnp.array([1.0, 2.0, 3.0]))


def test_a_collective_over_the_examples_of_a_vmap():
    np.testing.assert_allclose(along_examples(lambda x: x * lax.psum(x, "i")), [12.0, 12.0, 12.0])  # as by jax.grad
    place = lambda x: lax.axis_index("i").astype(x.dtype)
    around = [(0, 1), (1, 2), (2, 0)]
    np.testing.assert_allclose(along_examples(lambda x: place(x) * lax.ppermute(x, "i", around)), [1.0, 2.0, 0.0])
