"""How far gradients of a residual net in float32 are from the one in float64: `jax.grad`'s, and `fbp.grad`'s.

A relu whose input is within rounding of 0 lets its cotangent through under one algorithm and not under another. Among a
million relus there is about one, and it changes the gradient of a kernel by a thousandth to some hundredths of its largest
element. Which algorithm is right is chance, so neither gradient is always nearer to float64.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from rich.console import Console
from rich.table import Table

from benchmarks import drop_in
from benchmarks.measure import Variant

BATCHES, IMAGES = 4, 32


def gradient(variant: Variant, dtype: DTypeLike) -> list[np.ndarray]:
    """That of the program with all its numbers in a dtype."""

    def cast(x: ArrayLike) -> jax.Array:
        return jnp.asarray(x, dtype if jnp.issubdtype(jnp.result_type(x), jnp.floating) else None)

    with jax.enable_x64(True):
        params, batch = jax.tree.map(cast, (variant.params, variant.batch))
        return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(variant.step)(params, *batch)[1])]


def difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest of all weights', relative to the largest element of each gradient."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected, strict=True))


def main() -> None:
    table = Table("images", "jax.grad and float64", "fbp.grad and float64", "fbp.grad and jax.grad")
    for i, x in enumerate(drop_in.images(BATCHES * IMAGES, 32).reshape(BATCHES, IMAGES, 32, 32, 3)):
        variants = drop_in.classifier(drop_in.ResNet(), x).variants
        theirs, ours = (gradient(variants[name], jnp.float32) for name in ("jax.grad", "fbp.grad"))
        exact = gradient(variants["jax.grad"], jnp.float64)
        found = difference(theirs, exact), difference(ours, exact), difference(ours, theirs)
        table.add_row(f"batch {i}", *(f"{value:.0e}" for value in found))
    Console().print(table)


if __name__ == "__main__":
    main()
