"""Operations whose derivative is worth deriving by hand as one. To everyone but fbp they are the plain code inside."""

from fbp.ops.attention import dot_product_attention
from fbp.ops.losses import linear_cross_entropy
from fbp.ops.normalization import batch_norm, group_norm, layer_norm, rms_norm
from fbp.ops.recurrent import elman, gru, lstm
from fbp.ops.stacks import reversible, stack

__all__ = [
    "batch_norm",
    "dot_product_attention",
    "elman",
    "group_norm",
    "gru",
    "layer_norm",
    "linear_cross_entropy",
    "lstm",
    "reversible",
    "rms_norm",
    "stack",
]
