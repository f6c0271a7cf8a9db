"""Programs of `drop_in` and `layers` at sizes that fill a large accelerator, in float32 or bfloat16."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from benchmarks import drop_in, layers
from benchmarks.drop_in import images
from benchmarks.measure import Program


def with_dtype(program: Program, dtype: DTypeLike) -> Program:
    """The same program with parameters and data of this dtype."""

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

    variants = {n: v._replace(params=cast(v.params), batch=cast(v.batch)) for n, v in program.variants.items()}
    return program._replace(variants=variants)


def reference(program: Program) -> Program:
    """Without the row that only says what of a difference is the layers' own."""
    return program._replace(variants={n: v for n, v in program.variants.items() if n != "jax.grad of fbp.nn"})


WIDTHS = (64, 128, 256, 512)
NETWORKS: dict[str, Callable[[], Program]] = {
    "large-transformer-12": lambda: drop_in.transformer(12, length=1024, width=1024, batch=8),
    "large-resnet": lambda: drop_in.classifier(drop_in.ResNet(WIDTHS), images(256, 64)),
    "large-cross-entropy-32k": lambda: reference(layers.linear_cross_entropy(1 << 15, examples=8192, features=1024)),
    "large-attention-4096": lambda: reference(layers.attention(4096, heads=16, features=64)),
    "large-lstm": lambda: drop_in.recurrent(linen.OptimizedLSTMCell, length=128, batch=256, width=1024),
    "large-mobilenet": lambda: drop_in.classifier(drop_in.MobileNet((64, 128, 256, 256, 512)), images(256, 64)),
    "large-transformer-12-scan": lambda: drop_in.transformer(12, length=1024, width=1024, batch=8, scanned=True),
    "large-layer-norm": lambda: reference(layers.layer_norm((16, 2048, 4096))),
    "large-attention-8192": lambda: reference(layers.attention(8192, heads=16, features=64)),
    "large-vgg": lambda: drop_in.classifier(drop_in.VGG((64, 128, 256)), images(256, 64)),
    "large-mlp": lambda: drop_in.classifier(drop_in.MLP(4096), images(4096, 64, 1).reshape(4096, 4096)),
    "large-vision-transformer": lambda: drop_in.classifier(drop_in.VisionTransformer(), images(512, 64)),
    "large-deep-200": lambda: reference(layers.deep(200, batch=4096, width=512)),
    "large-reversible-200": lambda: reference(layers.reversible(200, batch=4096, width=1024)),
    "large-cross-entropy-128k": lambda: reference(layers.linear_cross_entropy(1 << 17, examples=8192, features=1024)),
}


def cases(dtype: DTypeLike) -> dict[str, Callable[[], Program]]:
    def of_dtype(make: Callable[[], Program]) -> Program:
        return with_dtype(make(), dtype)

    return {name: functools.partial(of_dtype, make) for name, make in NETWORKS.items()}
