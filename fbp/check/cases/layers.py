"""Cases for the layers of `fbp.nn`: the gradient with respect to parameters and input, training and not."""

from typing import Any

import jax
import jax.numpy as jnp

from fbp import nn
from fbp.check.case import Case, fixed, integers, normal, uniform


def layer_case(name, layer, *shape, train=False, tokens=0, **options):
    """The output of a layer on x: [*shape], as a function of its parameters and of x."""
    x = jax.ShapeDtypeStruct(shape, jnp.int32 if tokens else jnp.float32)
    params, _ = jax.eval_shape(layer.init, jax.random.key(0), x)
    leaves, tree = jax.tree.flatten(params)

    def fun(x, *leaves):
        state = jax.tree.map(lambda s: s.astype(leaves[0].dtype), layer.init(jax.random.key(0), x)[1])
        params = jax.tree.unflatten(tree, leaves)
        return layer.apply(params, state, x, train=train, rng=jax.random.key(1))

    makers = (integers(0, tokens, *shape) if tokens else normal(*shape)), *(normal(*leaf.shape) for leaf in leaves)
    settings: dict[str, Any] = {"ulps": 32, "low": False, "second": False} | options
    return Case(name, fun, makers, **settings)


def loss_case(name, loss, *args):
    return Case(name, lambda *xs: jnp.mean(loss(*xs)), args, ulps=16, low=False)


IMAGE = (2, 5, 6, 4)

CASES = [
    layer_case("dense", nn.dense(3), 2, 4, second=True),
    layer_case("conv", nn.conv(3, (3, 3)), *IMAGE),
    layer_case("conv/strided", nn.conv(3, (3, 2), strides=(2, 1), padding="VALID"), *IMAGE),
    layer_case("conv/grouped", nn.conv(6, (3, 3), feature_group_count=2), *IMAGE),
    layer_case("conv/depthwise", nn.conv(4, (3, 3), feature_group_count=4), *IMAGE),
    layer_case("conv_transpose", nn.conv_transpose(3, (3, 3), strides=2), *IMAGE),
    layer_case("embed", nn.embed(7, 3), 2, 5, tokens=7),
    layer_case("max_pool", nn.max_pool((2, 2), strides=2), *IMAGE),
    layer_case("avg_pool", nn.avg_pool((3, 3), strides=2, padding="SAME", count_include_pad=False), *IMAGE),
    layer_case("batch_norm/train", nn.batch_norm(), *IMAGE, train=True),
    layer_case("batch_norm/eval", nn.batch_norm(), *IMAGE),
    layer_case("layer_norm", nn.layer_norm(), 3, 8),
    layer_case("rms_norm", nn.rms_norm(), 3, 8),
    layer_case("group_norm", nn.group_norm(2), *IMAGE),
    layer_case("instance_norm", nn.instance_norm(), *IMAGE),
    layer_case("weight_norm", nn.weight_norm(nn.dense(3)), 2, 4),
    layer_case("attention", nn.multi_head_dot_product_attention(2), 2, 5, 4),
    layer_case("dropout", nn.dropout(0.5), 4, 5, train=True),
    layer_case("elman", nn.rnn(nn.simple_cell(3)), 2, 4, 3),
    layer_case("lstm", nn.rnn(nn.lstm_cell(3)), 2, 4, 3),
    layer_case("gru", nn.rnn(nn.gru_cell(3), reverse=True), 2, 4, 3),
    *[
        layer_case(act.__name__, act(), 3, 4, second=True)
        for act in (nn.sigmoid, nn.tanh, nn.relu, nn.leaky_relu, nn.elu, nn.selu, nn.silu, nn.gelu)
    ],
    layer_case("residual", nn.residual(nn.dense(4)), 3, 4),
    layer_case("mlp", nn.mlp((5, 4, 3)), 2, 4),
    layer_case("conv_net", nn.conv_net(3, (2, 4)), 2, 8, 8, 1, train=True),
    layer_case("residual_net", nn.residual_net(3, (2, 4)), 2, 8, 8, 1, train=True),
    layer_case("stack", nn.stack(nn.residual(nn.dense(4)), 3), 2, 4),
    layer_case("stack/dropout", nn.stack(nn.sequential(nn.dense(4), nn.dropout(0.5)), 3), 2, 4, train=True),
    layer_case(
        "reversible", nn.reversible(nn.dense(2), nn.sequential(nn.dense(2), nn.tanh()), 3), 2, 4, frugal=False
    ),  # it keeps the keys
    layer_case("transformer_block", nn.transformer_block(2, 8), 2, 5, 4),
    loss_case("squared_error", nn.squared_error, normal(3, 2), normal(3, 2)),
    loss_case("mean_squared_error", nn.mean_squared_error, normal(3, 2), normal(3, 2)),
    loss_case("huber_loss", nn.huber_loss, normal(3, 2), normal(3, 2)),
    loss_case("cross_entropy/integer", nn.softmax_cross_entropy_with_integer_labels, normal(4, 3), integers(0, 3, 4)),
    loss_case("cross_entropy/soft", nn.softmax_cross_entropy, normal(4, 3), uniform(0, 1, 4, 3)),
    loss_case("binary_cross_entropy", nn.sigmoid_binary_cross_entropy, normal(5), fixed([0.0, 1.0, 1.0, 0.0, 1.0])),
]
