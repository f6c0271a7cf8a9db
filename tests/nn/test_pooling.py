import flax.linen as linen
import jax.numpy as jnp
import pytest

from fbp import nn
from tests.nn.reference import assert_same_as_flax, normal

IMAGE = normal(2, 7, 6, 3)


class Pool(linen.Module):
    fun: object

    def __call__(self, x):
        return self.fun(x)


POOLS = {"max_pool": linen.max_pool, "avg_pool": linen.avg_pool, "min_pool": linen.pooling.min_pool}


@pytest.mark.parametrize("padding", ["VALID", "SAME", [(1, 0), (0, 1)]], ids=str)
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("name", POOLS)
def test_pooling(name, strides, padding):
    ours = getattr(nn, name)((2, 3), strides, padding)
    assert_same_as_flax(ours, Pool(lambda x: POOLS[name](x, (2, 3), strides, padding)), IMAGE)


def test_padding_need_not_count():
    flax = Pool(lambda x: linen.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False))
    assert_same_as_flax(nn.avg_pool((3, 3), 2, "SAME", count_include_pad=False), flax, IMAGE)


def test_global_avg_pool():
    assert_same_as_flax(nn.global_avg_pool(), Pool(lambda x: jnp.mean(x, (1, 2))), IMAGE)


def test_an_image_without_a_batch_is_refused():
    with pytest.raises(ValueError, match="max_pool with a kernel over 2 axes takes x"):
        nn.max_pool((2, 2)).apply({}, {}, jnp.ones((4, 4, 1)))
