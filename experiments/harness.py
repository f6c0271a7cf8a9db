"""What every experiment shares: its command line, its folder, its result, and errors a person can act on."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import tyro
from rich.console import Console
from rich.markup import escape

import fbp
from fbp import report
from fbp.train import CheckpointMismatch

console = Console(highlight=False)


class UserError(Exception):
    """Something a person can put right: the message says what, where and what to do. Shown without a traceback."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The options of every experiment."""

    out: pathlib.Path | None = None
    """Folder for the results; by default runs/NAME/<time>. It must be new or empty."""
    seed: int = 0
    """Of the parameters, the order of the data and the augmentation."""
    resume: pathlib.Path | None = None
    """Folder of a run that was stopped: go on from its last checkpoint, with its options."""


C = TypeVar("C", bound=Config)


class Run:
    """A run's folder, made when the first file is asked for, so that a run refused for its data leaves nothing behind.

    `path("x.png")` is a file in it; `finish(metrics)` writes result.json, and names it last."""

    def __init__(self, name: str, config: Config):
        self.name, self.config = name, config
        if config.resume:
            self.folder = config.resume
        else:
            time = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
            self.folder = config.out or pathlib.Path("runs") / name / time
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise UserError(
                    f"{self.folder} is there already and not empty. Choose another --out, or go on with that run by "
                    f"--resume {self.folder}."
                )

    def path(self, name: str) -> pathlib.Path:
        if not (self.folder / "config.json").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / "config.json", _jsonable(self.config))
        return self.folder / name

    def write(self, name: str, content: Any) -> pathlib.Path:
        """Writes a JSON file: whole or not at all."""
        return _write(self.path(name), content)

    def finish(self, metrics: dict[str, Any]) -> None:
        packages = "fbp", "jax", "jaxlib", "numpy", "optax"
        versions = {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages}
        device = jax.devices()[0]
        result = {
            "experiment": self.name,
            "config": _jsonable(self.config),
            "versions": versions,
            "device": f"{device.platform}: {device.device_kind}",
            "metrics": metrics,
        }
        console.print(_write(self.path("result.json"), result), soft_wrap=True)


def at_least(config: Config, **least: int) -> None:
    """Raises UserError for options below their least value, all of them at once; None is not given."""
    values = {name: getattr(config, name) for name in least}
    wrong = [
        f"--{name.replace('_', '-')} {value} (at least {least[name]})"
        for name, value in values.items()
        if value is not None and value < least[name]
    ]
    if wrong:
        raise UserError(f"these options are too small: {', '.join(wrong)}. Give larger numbers.")


def compare_with_jax(loss_fn, state, batch) -> dict[str, float]:
    """The gradient of the first batch by fbp and by jax.grad, layer by layer, in one program each."""
    rng = jax.random.key(0)
    ours, reference = (
        jax.jit(grad(loss_fn, has_aux=True))(state.params, state.model_state, batch, rng)[0]
        for grad in (fbp.grad, jax.grad)
    )
    rows = report.compare_gradients(ours, reference)
    console.print(report.gradient_table(rows, "gradient of the first batch: fbp against jax.grad"))
    return {"gradient_max_relative_difference": max(row.relative for row in rows)}


def draw_training(run: Run, parameters: Sequence[str], *tested: str) -> None:
    """The loss, the metrics that are called `tested`, and the gradient's norms by parameter, of the run's metrics.jsonl."""
    records = [json.loads(line) for line in run.path("metrics.jsonl").read_text().splitlines()]
    logged = {r["step"]: r for r in records if "loss" in r}
    scores = {name: {r["step"]: r[name] for r in records if name in r} for name in tested}
    losses = {step: r["loss"] for step, r in logged.items()}
    report.learning_curve(run.path("learning_curve.png"), losses, scores)
    norms = {step: r["grad_norm"] for step, r in logged.items()}
    report.gradient_flow(run.path("gradient_norms.png"), norms, parameters)


def name_pictures(run: Run) -> None:
    pictures = ", ".join(str(path) for path in sorted(run.folder.glob("*.png")))
    console.print(f"pictures: {pictures}", markup=False, soft_wrap=True)


Presets = Mapping[str, Mapping[str, Any]]


def main(
    config_class: type[C],
    experiment: Callable[[C, Run], None],
    args: list[str] | None = None,
    presets: Presets = MappingProxyType({}),
) -> None:
    """Reads the options, runs the experiment, and turns a `UserError` into a paragraph and exit status 1.

    An experiment of several sizes has an option `preset`: `presets[config.preset]` are the defaults of other options.
    With `--resume DIR` the options are those of that run; any that would change the result are refused.
    """
    name = pathlib.Path(sys.modules[config_class.__module__].__file__ or "experiment").stem
    args = sys.argv[1:] if args is None else args
    description = (sys.modules[config_class.__module__].__doc__ or "").strip()
    config = tyro.cli(config_class, args=args, prog=f"scripts/run {name}", description=description)
    if preset := presets.get(getattr(config, "preset", "")):
        config = tyro.cli(config_class, args=args, default=dataclasses.replace(config_class(), **preset))
    try:
        if config.resume:
            saved = saved_config(config_class, config.resume)
            config = tyro.cli(config_class, args=args, default=saved)
            kept = dataclasses.replace(config, resume=None)
            if kept != saved:
                changed = [f.name for f in dataclasses.fields(saved) if getattr(kept, f.name) != getattr(saved, f.name)]
                options = ", ".join(f"--{field.replace('_', '-')}" for field in changed)
                raise UserError(
                    f"a resumed run goes on with its own options, but {options} would change them. Leave them out, or start a "
                    "new run."
                )
        run = Run(name, config)
        try:
            experiment(config, run)
        except KeyboardInterrupt:
            how = f" Go on with: scripts/run {name} --resume {run.folder}" if run.folder.exists() else ""
            console.print(f"\nStopped.{how}", markup=False, soft_wrap=True)
            sys.exit(130)
    except (UserError, CheckpointMismatch, FloatingPointError) as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)


def saved_config(config_class: type[C], folder: pathlib.Path, option: str = "--resume") -> C:
    """The options of the run in a folder, which `option` names."""
    path = folder / "config.json"
    try:
        saved = json.loads(path.read_text())
        types = {f.name: f for f in dataclasses.fields(config_class)}
        paths = {"out", "resume", *(n for n, f in types.items() if "Path" in str(f.type))}
        values = {k: pathlib.Path(v) if k in paths and isinstance(v, str) else v for k, v in saved.items()}
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return config_class(**options)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{option} {folder}: there is no {path}, so this is not the folder of a run.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{option} {folder}: {path} is not a configuration of this experiment ({error}).") from None


def _write(path: pathlib.Path, content: Any) -> pathlib.Path:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
    return path


def _jsonable(config: Config) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in dataclasses.asdict(config).items()}
