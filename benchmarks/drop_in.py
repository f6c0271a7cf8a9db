"""Programs as their users write them, in Flax or in jax.numpy alone: nothing in them knows of fbp. Only `jax.grad` becomes
`fbp.grad`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fbp
from benchmarks.measure import Program, Variant


def images(batch: int, size: int, channels: int = 3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((batch, size, size, channels)), jnp.float32)


def labels(batch: int, classes: int = 10) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, classes, batch))


def unmodified(loss: Callable, params: Any, batch: tuple, checkpointed: Callable | None = None) -> Program:
    """A program under jax.grad and fbp.grad; `checkpointed` is the same as a user of jax.checkpoint writes it, if that is
    worth comparing."""
    steps = {"jax.grad": jax.value_and_grad(loss)}
    if checkpointed:
        steps["jax.checkpoint"] = jax.value_and_grad(checkpointed)
    steps["fbp.grad"] = fbp.value_and_grad(loss)
    return Program(loss, {name: Variant(step, params, batch) for name, step in steps.items()})


def classifier(model: nn.Module, x: jax.Array) -> Program:
    """Mean cross-entropy of a model that may keep running statistics."""
    variables = model.init(jax.random.key(0), x)
    params, state = variables["params"], {name: value for name, value in variables.items() if name != "params"}

    def loss(params, x, y):
        logits, _ = model.apply({"params": params, **state}, x, mutable=list(state))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return unmodified(loss, params, (x, labels(len(x))))


def regression(model: nn.Module, x: jax.Array, checkpointed: nn.Module | None = None) -> Program:
    """Mean square of what the model makes of a sequence."""
    params = model.init(jax.random.key(0), x)

    def loss(model):
        return lambda params, x: jnp.mean(model.apply(params, x) ** 2)

    return unmodified(loss(model), params, (x,), loss(checkpointed) if checkpointed else None)


Norm = functools.partial(nn.BatchNorm, use_running_average=False)


class MLP(nn.Module):
    width: int = 1024

    @nn.compact
    def __call__(self, x):
        for _ in range(4):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(10)(x)


class VGG(nn.Module):
    """Simonyan & Zisserman 2015, small, with batch normalization."""

    widths: tuple[int, ...] = (32, 64, 128)

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            for _ in range(2):
                x = nn.relu(Norm()(nn.Conv(width, (3, 3), use_bias=False)(x)))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


class ResidualBlock(nn.Module):
    width: int
    stride: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        y = nn.relu(Norm()(nn.Conv(self.width, (1, 1), use_bias=False)(x))) if self.groups > 1 else x
        strides = (self.stride, self.stride)
        y = nn.Conv(self.width, (3, 3), strides, feature_group_count=self.groups, use_bias=False)(y)
        y = Norm()(nn.Conv(self.width, (1, 1) if self.groups > 1 else (3, 3), use_bias=False)(nn.relu(Norm()(y))))
        if x.shape != y.shape:
            x = Norm()(nn.Conv(self.width, (1, 1), strides, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """He et al. 2016; with groups, ResNeXt (Xie et al. 2017)."""

    widths: tuple[int, ...] = (32, 64, 128)
    groups: int = 1
    blocks: int = 2

    @nn.compact
    def __call__(self, x):
        x = nn.relu(Norm()(nn.Conv(self.widths[0], (3, 3), use_bias=False)(x)))
        for i, width in enumerate(self.widths):
            for j in range(self.blocks):
                x = ResidualBlock(width, 2 if i > 0 and j == 0 else 1, self.groups)(x)
        return nn.Dense(10)(x.mean((1, 2)))


class MobileNet(nn.Module):
    """Howard et al. 2017: depthwise and 1x1 convolutions in turn."""

    widths: tuple[int, ...] = (32, 64, 128, 128, 256)

    @nn.compact
    def __call__(self, x):
        x = nn.relu(Norm()(nn.Conv(self.widths[0], (3, 3), use_bias=False)(x)))
        for i, width in enumerate(self.widths):
            strides = (2, 2) if i in (1, 2) else (1, 1)
            depthwise = nn.Conv(x.shape[-1], (3, 3), strides, feature_group_count=x.shape[-1], use_bias=False)
            x = nn.relu(Norm()(depthwise(x)))
            x = nn.relu(Norm()(nn.Conv(width, (1, 1), use_bias=False)(x)))
        return nn.Dense(10)(x.mean((1, 2)))


class UNet(nn.Module):
    """Ronneberger et al. 2015: down by max pooling, up by transposed convolutions, with the skips between."""

    widths: tuple[int, ...] = (16, 32, 64)

    @nn.compact
    def __call__(self, x):
        skips = []
        for width in self.widths[:-1]:
            skips.append(nn.relu(nn.Conv(width, (3, 3))(x)))
            x = nn.max_pool(skips[-1], (2, 2), (2, 2))
        x = nn.relu(nn.Conv(self.widths[-1], (3, 3))(x))
        for width, skip in zip(self.widths[-2::-1], skips[::-1], strict=True):
            x = nn.ConvTranspose(width, (2, 2), (2, 2))(x)
            x = nn.relu(nn.Conv(width, (3, 3))(jnp.concatenate([x, skip], -1)))
        return nn.Conv(1, (1, 1))(x)


class Recurrent(nn.Module):
    cell: Any
    width: int = 128

    @nn.compact
    def __call__(self, x):
        return nn.RNN(self.cell(self.width))(x)


class Block(nn.Module):
    """A pre-LN transformer block (Xiong et al. 2020)."""

    heads: int = 4
    causal: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        features = x.shape[-1]
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(y, y, mask=mask)
        y = nn.gelu(nn.Dense(4 * features)(nn.LayerNorm()(x)))
        return x + nn.Dense(features)(y), None


class Transformer(nn.Module):
    layers: int
    scanned: bool = False
    checkpointed: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block) if self.checkpointed else Block
        if self.scanned:
            scan = nn.scan(block, {"params": 0}, split_rngs={"params": True}, length=self.layers)
            x, _ = scan(name="blocks")(x, None)
        else:
            for i in range(self.layers):
                x, _ = block(name=f"block_{i}")(x)
        return nn.LayerNorm()(x)


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2021, small."""

    layers: int = 4

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(128, (4, 4), (4, 4))(x)
        x = x.reshape(len(x), -1, x.shape[-1])
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:])
        for _ in range(self.layers):
            x, _ = Block(causal=False)(x)
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


def transformer(layers: int, length: int = 128, width: int = 128, batch: int = 4, scanned: bool = False) -> Program:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((batch, length, width)), jnp.float32)
    return regression(Transformer(layers, scanned), x, Transformer(layers, scanned, checkpointed=True))


def plain_transformer(layers: int, length: int = 128, width: int = 128, batch: int = 4, heads: int = 4) -> Program:
    """The same blocks, written out in jax.numpy."""

    def norm(p, x):
        mean = x.mean(-1, keepdims=True)
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        return p["scale"] * (x - mean) / jnp.sqrt(variance + 1e-6) + p["bias"]

    def attention(p, x):
        q, k, v = (y.reshape(*y.shape[:2], heads, -1) for y in jnp.split(x @ p["qkv"], 3, -1))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(width // heads)
        weights = jax.nn.softmax(jnp.where(jnp.tri(length, dtype=bool), scores, -jnp.inf))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ p["out"]

    def loss(params, x):
        for p in params:
            x = x + attention(p, norm(p["norm_1"], x))
            x = x + jax.nn.gelu(norm(p["norm_2"], x) @ p["up"] + p["up_bias"]) @ p["down"] + p["down_bias"]
        return jnp.mean(x**2)

    rng = np.random.default_rng(0)
    kernel = lambda a, b: jnp.asarray(rng.standard_normal((a, b)) / np.sqrt(a), jnp.float32)
    affine = lambda: {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
    params = [
        {
            "norm_1": affine(), "qkv": kernel(width, 3 * width), "out": kernel(width, width),
            "norm_2": affine(), "up": kernel(width, 4 * width), "up_bias": jnp.zeros(4 * width),
            "down": kernel(4 * width, width), "down_bias": jnp.zeros(width),
        }
        for _ in range(layers)
    ]  # fmt: skip
    return unmodified(loss, params, (jnp.asarray(rng.standard_normal((batch, length, width)), jnp.float32),))


def recurrent(cell: Any, length: int = 64, batch: int = 32, width: int = 128) -> Program:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((batch, length, width)), jnp.float32)
    return regression(Recurrent(cell, width), x)


def carried_array(steps: int = 500, width: int = 256) -> Program:
    """A loop that writes its state into an array it carries, and reads from there: x_t = tanh(W x_{t-1}) + input_t."""
    w = jnp.asarray(np.random.default_rng(0).standard_normal((width, width)) / np.sqrt(width), jnp.float32)
    inputs = jnp.asarray(np.random.default_rng(1).standard_normal((steps, width)), jnp.float32)

    def loss(w, inputs):
        def body(t, history):
            return history.at[t].set(jnp.tanh(history[t - 1] @ w) + inputs[t])

        return jnp.mean(jax.lax.fori_loop(1, steps, body, jnp.zeros_like(inputs)) ** 2)

    return unmodified(loss, w, (inputs,))


class NnxMLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, width: int = 1024):
        self.layers = nnx.List([nnx.Linear(a, width, rngs=rngs) for a in (784, width, width, width)])
        self.out = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.out(x)


class NnxConvolutional(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.convolutions = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in ((3, 32), (32, 64), (64, 128))])
        self.out = nnx.Linear(2048, 10, rngs=rngs)

    def __call__(self, x):
        for convolution in self.convolutions:
            x = nnx.max_pool(nnx.relu(convolution(x)), (2, 2), (2, 2))
        return self.out(x.reshape(len(x), -1))


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, width: int = 128):
        self.norm_1, self.norm_2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class NnxTransformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(4)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def nnx_program(make: Callable, x: jax.Array, classes: bool = True) -> Program:
    graph, params = nnx.split(make(nnx.Rngs(0)))
    y = labels(len(x))

    def loss(params, x, y):
        out = nnx.merge(graph, params)(x)
        return optax.softmax_cross_entropy_with_integer_labels(out, y).mean() if classes else jnp.mean(out**2)

    return unmodified(loss, params, (x, y))


SEQUENCE = (4, 128, 128)
CASES: dict[str, Callable[[], Program]] = {
    "mlp": lambda: classifier(MLP(), images(256, 28, 1).reshape(256, 784)),
    "vgg": lambda: classifier(VGG(), images(32, 32)),
    "resnet": lambda: classifier(ResNet(), images(32, 32)),
    "resnet-56": lambda: classifier(ResNet((16, 32, 64), blocks=9), images(32, 32)),
    "mobilenet": lambda: classifier(MobileNet(), images(32, 32)),
    "resnext": lambda: classifier(ResNet((64, 128), groups=16), images(16, 32)),
    "unet": lambda: regression(UNet(), images(8, 64)),
    "lstm": lambda: recurrent(nn.OptimizedLSTMCell),
    "gru": lambda: recurrent(nn.GRUCell),
    "transformer-4": lambda: transformer(4),
    "transformer-12": lambda: transformer(12),
    "transformer-48": lambda: transformer(48, width=64),
    "transformer-12-scan": lambda: transformer(12, scanned=True),
    "plain-transformer-12": lambda: plain_transformer(12),
    "vision-transformer": lambda: classifier(VisionTransformer(), images(16, 32)),
    "carried-array": carried_array,
    "nnx-mlp": lambda: nnx_program(NnxMLP, images(256, 28, 1).reshape(256, 784)),
    "nnx-convolutional": lambda: nnx_program(NnxConvolutional, images(32, 32)),
    "nnx-transformer": lambda: nnx_program(
        NnxTransformer, jnp.asarray(np.random.default_rng(0).standard_normal(SEQUENCE), jnp.float32), classes=False
    ),
}
