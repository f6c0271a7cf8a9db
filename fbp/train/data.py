"""Batches of arrays in memory, in an order that depends on the seed and the epoch alone, so that a run can resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np


class Batches(NamedTuple):
    """Shuffled batches of a pytree of arrays with a common leading axis; what does not fill a batch waits for the next
    epoch's shuffle. `transform(batch, rng)` is for augmentation; its generator too depends on seed and step alone.

    >>> batches = Batches({"x": np.arange(10)}, batch_size=4, seed=0)
    >>> batches.steps_per_epoch
    2
    >>> first = next(batches.from_step(0))["x"]
    >>> bool((next(batches.from_step(0))["x"] == first).all())
    True
    """

    data: Any
    batch_size: int
    seed: int
    transform: Callable[[Any, np.random.Generator], Any] | None = None

    @property
    def size(self) -> int:
        sizes = {len(x) for x in jax.tree.leaves(self.data)}
        if len(sizes) != 1:
            raise ValueError(f"the arrays of a data set have one length, but these have {sorted(sizes)}.")
        return sizes.pop()

    @property
    def steps_per_epoch(self) -> int:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} is not a positive number of examples.")
        if self.batch_size > self.size:
            raise ValueError(
                f"batch_size={self.batch_size} is larger than the data set of {self.size} examples; there would be no batch."
            )
        return self.size // self.batch_size

    def from_step(self, step: int) -> Iterator[Any]:
        """The batches of the steps from `step` on, without end."""
        while True:
            epoch, place = divmod(step, self.steps_per_epoch)
            order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
            for i in range(place, self.steps_per_epoch):
                rows = order[i * self.batch_size : (i + 1) * self.batch_size]
                batch = jax.tree.map(lambda x, rows=rows: x[rows], self.data)
                if self.transform is not None:
                    batch = self.transform(batch, np.random.default_rng((self.seed, epoch, 1 + i)))
                yield batch
                step += 1
