"""Checkpoints by orbax: the whole train state, so that a resumed run goes on bit for bit."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from fbp.train.state import TrainState


class CheckpointMismatch(ValueError):
    """A checkpoint holds another state than the one to restore."""


class Checkpoints:
    """The checkpoints of a run in a folder, the last two of them. Written whole or not at all."""

    def __init__(self, folder: str | pathlib.Path, keep: int = 2):
        self.folder = pathlib.Path(folder).absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
            item_handlers=ocp.StandardCheckpointHandler(),  # else a manager that has not saved cannot read the types
        )

    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Writes the state, if this step is not there yet."""
        step = int(state.step)
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(_plain(state)))
            self._manager.wait_until_finished()

    def restore(self, like: TrainState) -> TrainState:
        """The newest checkpoint, as a state of the same structure, shapes and dtypes as `like`.

        Raises FileNotFoundError if there is none, CheckpointMismatch with every difference if it is of another model.
        """
        step = self.latest()
        if step is None:
            raise FileNotFoundError(
                f"there is no checkpoint in {self.folder}. Was the run stopped before the first one?"
            )
        saved = _types(self._manager.item_metadata(step))
        wanted = _types(_plain(like))
        if different := [
            _difference(k, saved.get(k), wanted.get(k))
            for k in sorted({*saved, *wanted})
            if saved.get(k) != wanted.get(k)
        ]:
            shown = "; ".join(different[:5]) + (f"; and {len(different) - 5} more" if len(different) > 5 else "")
            raise CheckpointMismatch(
                f"the checkpoint of step {step} in {self.folder} is of another model or optimizer: {shown}. Resume with "
                "the configuration that the run was started with, or start a new run."
            )
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(_plain(like)))
        rng = jax.random.wrap_key_data(jnp.asarray(restored["rng"]), impl=jax.random.key_impl(like.rng))
        tree = jax.tree.structure(like._replace(rng=0))
        leaves = jax.tree.leaves(_unkeyed(like, restored))
        return jax.tree.unflatten(tree, leaves)._replace(rng=rng)

    def close(self) -> None:
        self._manager.close()


def _plain(state: TrainState) -> dict[str, Any]:
    """The state as a dictionary from paths to arrays, the key as its numbers: what a file can hold and a person read."""
    leaves = jax.tree_util.tree_flatten_with_path(state._replace(rng=None))[0]
    plain = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    return plain | {"rng": jax.random.key_data(state.rng)}


def _unkeyed(like: TrainState, plain: Mapping[str, Any]) -> list[Any]:
    leaves = jax.tree_util.tree_flatten_with_path(like._replace(rng=None))[0]
    return [plain[jax.tree_util.keystr(path, simple=True, separator="/")] for path, _ in leaves] + [0]


def _types(plain: Any) -> dict[str, tuple]:
    return {key: (tuple(x.shape), str(x.dtype)) for key, x in plain.items()}


def _difference(key, saved, wanted) -> str:
    if saved is None or wanted is None:
        return f"{key} is {'missing' if saved is None else 'not expected'}"
    return f"{key} is {saved[1]}{list(saved[0])}, not {wanted[1]}{list(wanted[0])}"
