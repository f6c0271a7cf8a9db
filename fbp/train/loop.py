"""The loop around the step: progress on the terminal, metrics in a file, checkpoints, and a way back after a stop."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fbp.train.checkpoint import Checkpoints
from fbp.train.data import Batches
from fbp.train.state import TrainState


def fit(
    state: TrainState,
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict]],
    batches: Batches,
    steps: int,
    *,
    metrics_file: str | pathlib.Path,
    checkpoints: Checkpoints | None = None,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    log_every: int = 20,
) -> TrainState:
    """Trains to `steps` steps in all, from wherever `state` is.

    Every `log_every` steps a line of JSON with the step's metrics goes to `metrics_file`; after every epoch the metrics
    of `evaluate`, and a checkpoint. Interrupted by Ctrl-C, it finishes the step and writes a checkpoint before it stops (a
    second Ctrl-C does not wait). After a resume, lines of steps that will be taken again are dropped, so the file is that
    of an uninterrupted run.

    Raises FloatingPointError if the loss or a gradient is not finite at a logged step or the end of an epoch; the last
    checkpoint is from before.
    """
    log = _Log(pathlib.Path(metrics_file), int(state.step))
    stream = batches.from_step(int(state.step))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
    )
    with log, _Interrupt() as interrupt, Progress(*columns) as progress:
        task = progress.add_task("training", total=steps, completed=int(state.step), shown="")
        whole = True  # the state is there, and the log says all of its step
        try:
            for step in range(int(state.step) + 1, steps + 1):
                batch = next(stream)
                whole = False
                state, metrics = train_step(state, batch)
                logged = step % log_every == 0 or step == steps
                epoch_ends = step % batches.steps_per_epoch == 0 or step == steps
                if logged or epoch_ends or interrupt.asked:
                    metrics = _floats(metrics)
                    _check_finite(step, metrics, log.path)
                if logged:
                    log.write({"step": step, **metrics})
                    progress.update(task, shown=f"loss {metrics['loss']:.4f}")
                if epoch_ends:
                    if evaluate is not None:
                        scores = _floats(evaluate(state))
                        log.write({"step": step, "epoch": step // batches.steps_per_epoch, **scores})
                        shown = "  ".join(f"{k} {v:.4f}" for k, v in scores.items())
                        progress.console.print(f"epoch {step // batches.steps_per_epoch}: {shown}", highlight=False)
                    if checkpoints is not None:
                        log.flush()
                        checkpoints.save(state)
                progress.update(task, completed=step)
                whole = True
                if interrupt.asked:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            if checkpoints is not None and whole:
                log.flush()
                checkpoints.save(state)
            raise
    return state


def evaluate(
    predict: Callable[[Any, Any], jax.Array], state: TrainState, xs: np.ndarray, batch_size: int = 500
) -> np.ndarray:
    """`predict(state, x)` over all of `xs`, batch by batch, as one array. The last batch is filled up and cut."""
    outputs = []
    for start in range(0, len(xs), batch_size):
        x = xs[start : start + batch_size]
        padding = [(0, batch_size - len(x))] + [(0, 0)] * (x.ndim - 1)
        outputs.append(np.asarray(predict(state, np.pad(x, padding)))[: len(x)])
    return np.concatenate(outputs)


def _check_finite(step: int, metrics: dict[str, Any], path: pathlib.Path) -> None:
    bad = [name for name, norm in metrics.get("grad_norm", {}).items() if not np.isfinite(norm)]
    if not np.isfinite(metrics["loss"]) or bad:
        gradients = f", and the gradient is not finite in {', '.join(bad)}" if bad else ""
        raise FloatingPointError(
            f"the loss is {metrics['loss']} at step {step}{gradients}. Lower the learning rate, or look at the gradient "
            f"norms in {path} for the layer where it began."
        )


class _Interrupt:
    """Holds Ctrl-C back until the end of a step: within it the given state is donated already, or the log incomplete."""

    def __init__(self):
        self.asked = False
        in_main = threading.current_thread() is threading.main_thread()
        self._held = in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def __enter__(self) -> _Interrupt:
        if self._held:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._held:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class _Log:
    """Metrics as JSON lines, up to a step."""

    def __init__(self, path: pathlib.Path, step: int):
        self.path = path
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    kept += [line] if json.loads(line)["step"] <= step else []
                except json.JSONDecodeError:  # half a line: the run was killed while it wrote
                    break
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, path)

    def __enter__(self) -> _Log:
        self._file = self.path.open("a")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def _floats(tree: Any) -> Any:
    return jax.tree.map(float, jax.device_get(tree))
