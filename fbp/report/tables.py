"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from fbp.check.compare import relative_error, ulps


class Comparison(NamedTuple):
    """One parameter's gradient against the reference: its norm, and how far the two are apart."""

    leaf: str
    shape: tuple[int, ...]
    norm: float
    relative: float
    ulps: float


def compare_gradients(ours: Any, reference: Any) -> list[Comparison]:
    """Leaf by leaf, how far two pytrees of gradients are apart, relative to the largest element and in ULPs of it."""
    rows = []
    leaves = jax.tree_util.tree_flatten_with_path(reference)[0]
    for (path, b), a in zip(leaves, jax.tree.leaves(ours), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows.append(Comparison(name, np.shape(b), float(np.linalg.norm(np.ravel(b))), relative_error(a, b), ulps(a, b)))
    return rows


def gradient_table(rows: Sequence[Comparison], title: str = "gradient by fbp against jax.grad") -> Table:
    """A comparison as a rich table: print it with `rich.print`."""
    table = Table("parameter", "shape", title=title, title_justify="left")
    for heading in "‖gradient‖", "relative", "ULPs":
        table.add_column(heading, justify="right")
    for row in rows:
        shape = "×".join(map(str, row.shape))
        table.add_row(row.leaf, shape, f"{row.norm:.3g}", f"{row.relative:.1e}", f"{row.ulps:.1f}")
    return table
