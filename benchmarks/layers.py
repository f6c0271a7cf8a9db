"""The same networks written with fbp's layers and operations, beside their Flax twins: equal parameters, one gradient.

"jax.grad" is that of the Flax network, the reference; "jax.grad of fbp.nn" shows what of a difference is the layers' own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax

import fbp
from benchmarks import drop_in, pytorch
from benchmarks.measure import Program, Variant
from fbp import nn, ops

Path = tuple[str, ...]


# ------------------------------------------------------------------------------------------------------------ twins


def paths(tree: Any) -> list[Path]:
    """Those of the leaves of nested dictionaries, in JAX's order: that of the names."""
    return [tuple(key.key for key in path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def paths_as_made(tree: Any) -> list[Path]:
    """The same in the order in which a network made them."""
    if not isinstance(tree, Mapping):
        return [()]
    return [(key, *path) for key, value in tree.items() for path in paths_as_made(value)]


def twin(program: Program, layer: nn.Layer, in_order: Callable[[Any], list[Path]] = paths_as_made) -> Program:
    """A program of `drop_in`, and the same network as a layer of fbp with the same parameters, the two paired `in_order`."""
    flax = program.variants["jax.grad"]
    ours, state = layer.init(jax.random.key(0), flax.batch[0])
    theirs = dict(zip(paths(flax.params), jax.tree.leaves(flax.params), strict=True))
    twins = dict(zip(in_order(flax.params), in_order(ours), strict=True))
    values = {twins[path]: leaf for path, leaf in theirs.items()}
    params = jax.tree.unflatten(jax.tree.structure(ours), [values[path] for path in paths(ours)])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, ours)

    def loss(params, x, *y):
        out, _ = layer.apply(params, state, x, train=True)
        return nn.softmax_cross_entropy_with_integer_labels(out, *y).mean() if y else jnp.mean(out**2)

    def as_flax(gradient):
        found = dict(zip(paths(gradient), jax.tree.leaves(gradient), strict=True))
        return [found[twins[path]] for path in theirs]

    return beside(program, loss, params, as_flax)


def beside(
    program: Program, loss: Callable, params: Any, as_reference: Callable = lambda gradient: gradient
) -> Program:
    """The program, without fbp.grad of it; and a loss that is the same in fbp's layers, under jax.grad and fbp.grad."""
    variants = {name: variant for name, variant in program.variants.items() if name != "fbp.grad"}
    batch = variants["jax.grad"].batch
    for name, transform in {"jax.grad of fbp.nn": jax.value_and_grad, "fbp.grad": fbp.value_and_grad}.items():
        variants[name] = Variant(transform(loss), params, batch, as_reference)
    return program._replace(variants=variants)


def beside_pytorch(name: str, make: Callable[[], Program]) -> Program:
    """A program, and its network in PyTorch, if that is installed and `benchmarks.pytorch` has it."""
    program = make()
    step = pytorch.step(name, program.variants["jax.grad"].batch)
    if step is None:
        return program
    return program._replace(variants=program.variants | {"PyTorch": Variant(step, None, (), None, jitted=False)})


# --------------------------------------------------------------------------------------------------------- networks


def vgg(widths: Iterable[int] = (32, 64, 128)) -> nn.Layer:
    def stage(width):
        convolution = nn.conv(width, (3, 3), use_bias=False), nn.batch_norm(), nn.relu()
        return *convolution, *convolution, nn.max_pool((2, 2), 2)

    return nn.sequential(*(layer for width in widths for layer in stage(width)), nn.flatten(), nn.dense(10))


def mobilenet(widths: tuple[int, ...] = (32, 64, 128, 128, 256)) -> nn.Layer:
    layers = [nn.conv(widths[0], (3, 3), use_bias=False), nn.batch_norm(), nn.relu()]
    for i, (inputs, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
        strides = 2 if i in (1, 2) else 1
        layers += [
            nn.conv(inputs, (3, 3), strides, feature_group_count=inputs, use_bias=False),
            nn.batch_norm(),
            nn.relu(),
        ]
        layers += [nn.conv(width, (1, 1), use_bias=False), nn.batch_norm(), nn.relu()]
    return nn.sequential(*layers, nn.global_avg_pool(), nn.dense(10))


def causal(layer: nn.Layer) -> nn.Layer:
    """Attention in it to what is not after."""

    def apply(params, state, x, **options):
        return layer.apply(params, state, x, mask=nn.make_causal_mask(x[..., 0], bool), **options)

    return nn.Layer(layer.name, layer.init, apply)


def blocks(depth: int, width: int) -> nn.Layer:
    return nn.sequential(*[causal(nn.transformer_block(4, 4 * width))] * depth, nn.layer_norm())


def vision_transformer(layers: int = 4, width: int = 128) -> nn.Layer:
    as_sequence = nn.stateless("as_sequence", lambda x: x.reshape(len(x), -1, x.shape[-1]))
    position = nn.Layer(
        "position",
        lambda rng, x: ({"position": jax.nn.initializers.normal(0.02)(rng, x.shape[1:])}, {}),
        lambda params, state, x, **_: (x + params["position"], state),
    )
    block = nn.transformer_block(4, 4 * width)
    mean = nn.stateless("mean", lambda x: x.mean(1))
    head = nn.layer_norm(), mean, nn.dense(10)
    return nn.sequential(nn.conv(width, (4, 4), 4), as_sequence, position, *[block] * layers, *head)


def transformer(depth: int, width: int = 128, length: int = 128) -> Program:
    return twin(drop_in.transformer(depth, length, width), blocks(depth, width))


def recurrent(flax: Any, cell: Callable[[int], nn.Cell], length: int = 64, width: int = 128) -> Program:
    return twin(drop_in.recurrent(flax, length, width=width), nn.rnn(cell(width)), paths)


lstm = functools.partial(recurrent, linen.OptimizedLSTMCell, nn.lstm_cell)
gru = functools.partial(recurrent, linen.GRUCell, nn.gru_cell)


def layer_norm(shape: tuple[int, ...] = (16, 256, 1024)) -> Program:
    return twin(drop_in.regression(linen.LayerNorm(), normal(*shape)), nn.layer_norm())


# ------------------------------------------------------------------------------------------------------ deep stacks


class Half(linen.Module):
    """W gelu(layer norm(x)): what a residual block adds."""

    @linen.compact
    def __call__(self, x):
        return linen.Dense(x.shape[-1])(linen.gelu(linen.LayerNorm()(x)))


class Residual(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        return x + Half()(x), None


class Reversible(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        x1, x2 = jnp.split(x, 2, -1)
        x1 = x1 + Half(name="f")(x2)
        return jnp.concatenate([x1, x2 + Half(name="g")(x1)], -1), None


class Deep(linen.Module):
    block: Any
    depth: int
    checkpointed: bool = False

    @linen.compact
    def __call__(self, x):
        block = linen.remat(self.block, prevent_cse=False) if self.checkpointed else self.block
        scan = linen.scan(block, {"params": 0}, split_rngs={"params": True}, length=self.depth)
        return scan(name="blocks")(x, None)[0]


def half(width: int) -> nn.Layer:
    return nn.sequential(nn.layer_norm(), nn.gelu(), nn.dense(width))


def deep(depth: int, batch: int = 64, width: int = 128) -> Program:
    flax = drop_in.regression(Deep(Residual, depth), normal(batch, width), Deep(Residual, depth, True))
    return twin(flax, nn.stack(nn.residual(half(width)), depth))


def reversible(depth: int, batch: int = 64, width: int = 256) -> Program:
    flax = drop_in.regression(Deep(Reversible, depth), normal(batch, width), Deep(Reversible, depth, True))
    return twin(flax, nn.reversible(half(width // 2), half(width // 2), depth))


# ------------------------------------------------------------------------------------------------------- operations


def attention(length: int, heads: int = 4, features: int = 64) -> Program:
    """One causal attention, with respect to query, key and value. The reference is the faster of JAX's two."""

    def loss(attend):
        return lambda params, weights: jnp.mean(weights * attend(*params))

    def flax(query, key, value):
        mask = linen.make_causal_mask(query[..., 0, 0], dtype=bool)
        return linen.dot_product_attention(query, key, value, mask=mask)

    plain = loss(functools.partial(jax.nn.dot_product_attention, is_causal=True))
    params = tuple(normal(1, length, heads, features, seed=seed) for seed in range(3))
    batch = (normal(1, length, heads, features, seed=3),)
    program = drop_in.unmodified(plain, params, batch, jax.checkpoint(plain))
    program.variants["jax.grad of linen"] = Variant(jax.value_and_grad(loss(flax)), params, batch)
    return beside(program, loss(functools.partial(ops.dot_product_attention, is_causal=True)), params)


def linear_cross_entropy(classes: int, examples: int = 1024, features: int = 128) -> Program:
    """The last layer of a language model and its loss, with respect to features and kernel."""

    def loss(params, labels):
        return optax.softmax_cross_entropy_with_integer_labels(params["x"] @ params["kernel"], labels).mean()

    def fused(params, labels):
        return ops.linear_cross_entropy(params["x"], params["kernel"], labels)

    params = {
        "x": normal(examples, features),
        "kernel": normal(features, classes) / np.sqrt(features).astype("float32"),
    }
    program = drop_in.unmodified(loss, params, (drop_in.labels(examples, classes),), jax.checkpoint(loss))
    return beside(program, fused, params)


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


NETWORKS: dict[str, Callable[[], Program]] = {
    "mlp": lambda: twin(drop_in.CASES["mlp"](), nn.mlp((1024, 1024, 1024, 1024, 10))),
    "vgg": lambda: twin(drop_in.CASES["vgg"](), vgg()),
    "resnet": lambda: twin(drop_in.CASES["resnet"](), nn.residual_net(10, (32, 64, 128), 2)),
    "mobilenet": lambda: twin(drop_in.CASES["mobilenet"](), mobilenet()),
    "lstm": lstm,
    "lstm-256": lambda: lstm(256),
    "lstm-1024": lambda: lstm(1024),
    "gru": gru,
    "gru-256": lambda: gru(256),
    "gru-1024": lambda: gru(1024),
    "transformer-4": lambda: transformer(4),
    "transformer-12": lambda: transformer(12),
    "vision-transformer": lambda: twin(drop_in.CASES["vision-transformer"](), vision_transformer()),
    "attention-256": lambda: attention(256),
    "attention-1024": lambda: attention(1024),
    "attention-4096": lambda: attention(4096),
    "cross-entropy-8k": lambda: linear_cross_entropy(1 << 13),
    "cross-entropy-32k": lambda: linear_cross_entropy(1 << 15),
    "cross-entropy-128k": lambda: linear_cross_entropy(1 << 17),
    "deep-48": lambda: deep(48),
    "deep-200": lambda: deep(200),
    "deep-1000": lambda: deep(1000),
    "reversible-1000": lambda: reversible(1000),
    "layer-norm": layer_norm,
}

CASES = {name: functools.partial(beside_pytorch, name, make) for name, make in NETWORKS.items()}

# By what is varied: the sizes, and the program of a size.
GROWTH: dict[str, tuple[tuple[int, ...], Callable[[int], Program]]] = {
    "layers of a transformer": ((2, 4, 8, 16), transformer),
    "layers of a transformer in jax.numpy": ((2, 4, 8, 16), drop_in.plain_transformer),
    "length of attention": ((256, 512, 1024, 2048), attention),
    "length of an LSTM": ((32, 64, 128, 256, 512), lstm),
    "classes of the last layer and its loss": ((4096, 8192, 16384, 32768, 65536), linear_cross_entropy),
    "steps that write to a carried array": ((250, 500, 1000, 2000), drop_in.carried_array),
}
