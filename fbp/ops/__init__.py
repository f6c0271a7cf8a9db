"""Operations whose derivative is worth deriving by hand as one. To everyone but fbp they are the plain code inside."""

from fbp.ops.attention import dot_product_attention
from fbp.ops.losses import linear_cross_entropy
from fbp.ops.stacks import reversible, stack

__all__ = ["dot_product_attention", "linear_cross_entropy", "reversible", "stack"]
