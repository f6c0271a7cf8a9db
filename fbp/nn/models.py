"""Small networks of the usual kinds, for experiments, tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax

from fbp.nn.activations import dropout, flatten, gelu, relu
from fbp.nn.attention import multi_head_dot_product_attention
from fbp.nn.layer import Layer, residual, sequential, split_rng
from fbp.nn.linear import conv, dense
from fbp.nn.normalization import batch_norm, layer_norm
from fbp.nn.pooling import global_avg_pool, max_pool


def mlp(features: Sequence[int], activation: Callable[[], Layer] = relu, rate: float = 0.0) -> Layer:
    """Dense layers of these sizes with an activation (and dropout) between them. x: [batch, ...], y: [batch, features[-1]]."""
    layers: list[Layer] = [flatten()]
    for size in features[:-1]:
        layers += [dense(size), activation(), *([dropout(rate)] if rate else [])]
    return sequential(*layers, dense(features[-1]))


def conv_net(classes: int, widths: Sequence[int] = (32, 64, 128), momentum: float = 0.9, rate: float = 0.0) -> Layer:
    """Two 3x3 convolutions with batch norm for each width, max pooling between them, global pooling, a dense layer.

    x: [batch, height, width, channels], y: [batch, classes].
    """
    layers: list[Layer] = []
    for i, width in enumerate(widths):
        layers += [max_pool((2, 2), strides=2)] if i else []
        for _ in range(2):
            layers += [conv(width, (3, 3), use_bias=False), batch_norm(momentum), relu()]
    return sequential(*layers, global_avg_pool(), *([dropout(rate)] if rate else []), dense(classes))


def residual_net(classes: int, widths: Sequence[int] = (16, 32, 64), blocks: int = 1, momentum: float = 0.9) -> Layer:
    """A small residual net (He et al. 2016, section 4.2): for each width `blocks` blocks of two convolutions, the first
    of every width but the first with stride 2 and a 1x1 shortcut."""

    def block(width, strides):
        body = sequential(
            conv(width, (3, 3), strides, use_bias=False), batch_norm(momentum), relu(),
            conv(width, (3, 3), use_bias=False), batch_norm(momentum),
        )  # fmt: skip
        shortcut = (
            sequential(conv(width, (1, 1), strides, use_bias=False), batch_norm(momentum)) if strides > 1 else None
        )
        return sequential(residual(body, shortcut), relu())

    layers: list[Layer] = [conv(widths[0], (3, 3), use_bias=False), batch_norm(momentum), relu()]
    for i, width in enumerate(widths):
        layers += [block(width, 2 if i and not j else 1) for j in range(blocks)]
    return sequential(*layers, global_avg_pool(), dense(classes))


def transformer_block(num_heads: int, mlp_features: int, dropout_rate: float = 0.0, is_causal: bool = False) -> Layer:
    """x + attention(norm(x)), then x + mlp(norm(x)) (Xiong et al. 2020, the pre-LN variant). x, y: [batch, time, features].

    apply takes mask=, as attention does. is_causal: no position sees one after it.
    """
    norms = layer_norm(), layer_norm()
    attend = multi_head_dot_product_attention(num_heads, dropout_rate=dropout_rate, is_causal=is_causal)

    def feed_forward(features):
        return sequential(dense(mlp_features), gelu(), dense(features), dropout(dropout_rate))

    def init(rng, x):
        rngs = split_rng(rng, 4)
        layers = {"norm_0": norms[0], "attention": attend, "norm_1": norms[1], "mlp": feed_forward(x.shape[-1])}
        both = {key: layer.init(r, x) for (key, layer), r in zip(layers.items(), rngs, strict=True)}
        return {key: params for key, (params, _) in both.items()}, {key: state for key, (_, state) in both.items()}

    def apply(params, state, x, *, mask=None, train=False, rng=None):
        attention_rng, mlp_rng = split_rng(rng, 2)
        with jax.named_scope("attention"):
            y, _ = norms[0].apply(params["norm_0"], {}, x)
            y, _ = attend.apply(params["attention"], {}, y, mask=mask, train=train, rng=attention_rng)
            x = x + y
        with jax.named_scope("mlp"):
            y, _ = norms[1].apply(params["norm_1"], {}, x)
            y, _ = feed_forward(x.shape[-1]).apply(params["mlp"], state["mlp"], y, train=train, rng=mlp_rng)
            return x + y, state

    return Layer("transformer_block", init, apply)
