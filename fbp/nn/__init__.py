"""Layers and losses: (init, apply) pairs of pure functions over parameter pytrees, with Flax's names and conventions."""

from fbp.nn.activations import dropout, elu, flatten, gelu, leaky_relu, relu, selu, sigmoid, silu, tanh
from fbp.nn.attention import dot_product_attention, make_causal_mask, multi_head_dot_product_attention
from fbp.nn.layer import Layer, residual, sequential, stateless
from fbp.nn.linear import conv, conv_transpose, dense, embed
from fbp.nn.losses import (
    huber_loss,
    mean_squared_error,
    sigmoid_binary_cross_entropy,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
    squared_error,
)
from fbp.nn.models import conv_net, mlp, residual_net, transformer_block
from fbp.nn.normalization import batch_norm, group_norm, instance_norm, layer_norm, rms_norm, weight_norm
from fbp.nn.pooling import avg_pool, global_avg_pool, max_pool, min_pool
from fbp.nn.recurrent import Cell, gru_cell, lstm_cell, rnn, simple_cell
from fbp.nn.stacks import reversible, stack

__all__ = [
    "Cell",
    "Layer",
    "avg_pool",
    "batch_norm",
    "conv",
    "conv_net",
    "conv_transpose",
    "dense",
    "dot_product_attention",
    "dropout",
    "elu",
    "embed",
    "flatten",
    "gelu",
    "global_avg_pool",
    "group_norm",
    "gru_cell",
    "huber_loss",
    "instance_norm",
    "layer_norm",
    "leaky_relu",
    "lstm_cell",
    "make_causal_mask",
    "max_pool",
    "mean_squared_error",
    "min_pool",
    "mlp",
    "multi_head_dot_product_attention",
    "relu",
    "residual",
    "residual_net",
    "reversible",
    "rms_norm",
    "rnn",
    "selu",
    "sequential",
    "sigmoid",
    "sigmoid_binary_cross_entropy",
    "silu",
    "simple_cell",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "squared_error",
    "stack",
    "stateless",
    "tanh",
    "transformer_block",
    "weight_norm",
]
