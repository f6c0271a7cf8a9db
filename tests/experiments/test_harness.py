"""An experiment of the tests: it adds."""

import dataclasses
import importlib.metadata
import json
import pathlib
from typing import Literal

import jax
import pytest

from experiments.harness import Config, Run, UserError, at_least, main
from fbp.train import CheckpointMismatch


@dataclasses.dataclass(frozen=True)
class Adding(Config):
    numbers: tuple[int, ...] = (1, 2)
    unit: Literal["apples", "pears"] = "apples"
    source: pathlib.Path | None = None


def add(config, run):
    run.finish({"sum": sum(config.numbers)})


def called(*args, experiment=add):
    main(Adding, experiment, [str(arg) for arg in args])


def refused(capsys, *args, status=1, experiment=add):
    """The message of a command that ends with an error."""
    with pytest.raises(SystemExit) as stop:
        called(*args, experiment=experiment)
    assert stop.value.code == status
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_the_result_says_what_was_run_and_on_what(tmp_path, capsys):
    folder = tmp_path / "new" / "run"
    called("--out", folder, "--seed", 3, "--numbers", 4, 5, "--source", "a/b")
    config = {"out": str(folder), "seed": 3, "resume": None, "numbers": [4, 5], "unit": "apples", "source": "a/b"}
    found = result(folder)
    assert {key: found[key] for key in ("experiment", "config", "metrics")} == {
        "experiment": "test_harness",
        "config": config,
        "metrics": {"sum": 9},
    }
    assert {"python", "fbp", "jax", "jaxlib", "numpy", "optax"} == {*found["versions"]}
    assert found["versions"]["jax"] == importlib.metadata.version("jax")
    assert found["device"].startswith(jax.devices()[0].platform)
    assert json.loads((folder / "config.json").read_text()) == config
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "result.json"]
    assert capsys.readouterr().out == f"{folder}/result.json\n"


def test_the_folder_is_named_after_the_time_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called()
    (folder,) = (tmp_path / "runs" / "test_harness").iterdir()
    assert result(folder)["metrics"] == {"sum": 3}


def test_an_empty_folder_will_do(tmp_path):
    called("--out", tmp_path)
    assert result(tmp_path)["metrics"] == {"sum": 3}


def test_a_folder_that_is_not_empty_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    error = refused(capsys, "--out", tmp_path)
    assert error == (
        f"error: {tmp_path} is there already and not empty. Choose another --out, or go on with that run by "
        f"--resume {tmp_path}.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert "is there already" in refused(capsys, "--out", tmp_path / "notes.txt")


def test_a_resumed_run_has_its_own_options(tmp_path):
    folder = tmp_path / "run"
    called("--out", folder, "--numbers", 4, 5, "--unit", "pears", "--source", "a/b")
    seen = []
    called("--resume", folder, experiment=lambda config, run: seen.append((config, run.folder)) or add(config, run))
    options = {"numbers": (4, 5), "unit": "pears", "source": pathlib.Path("a/b"), "out": folder, "resume": folder}
    assert seen == [(Adding(**options), folder)]
    assert result(folder)["metrics"] == {"sum": 9}


def test_the_same_options_may_be_given_again(tmp_path):
    called("--out", tmp_path, "--numbers", 4, 5)
    called("--resume", tmp_path, "--numbers", 4, 5)
    assert result(tmp_path)["metrics"] == {"sum": 9}


def test_changed_options_are_refused(tmp_path, capsys):
    called("--out", tmp_path)
    before = (tmp_path / "result.json").read_bytes()
    options = "--out", tmp_path / "other", "--seed", 1, "--unit", "pears", "--source", "x"
    error = refused(capsys, "--resume", tmp_path, *options)
    assert "but --out, --seed, --unit, --source would change them. Leave them out, or start a new run." in error
    assert (tmp_path / "result.json").read_bytes() == before


def test_a_folder_that_is_no_run_is_not_resumed(tmp_path, capsys):
    (tmp_path / "file").touch()
    for folder in tmp_path, tmp_path / "gone", tmp_path / "file":
        error = refused(capsys, "--resume", folder)
        assert error == (
            f"error: --resume {folder}: there is no {folder}/config.json, so this is not the folder of a run.\n"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"depth": 3}', b"\xff\xfe", b""])
def test_a_folder_of_another_experiment_is_not_resumed(tmp_path, capsys, content):
    (tmp_path / "config.json").write_bytes(content)
    error = refused(capsys, "--resume", tmp_path)
    assert f"{tmp_path}/config.json is not a configuration of this experiment (" in error


@pytest.mark.parametrize("option", [["--nmbers", "3"], ["--unit", "plums"], ["--seed", "x"]])
def test_a_wrong_option_is_refused_before_anything_is_made(tmp_path, capsys, option):
    assert option[0] in refused(capsys, "--out", tmp_path / "run", *option, status=2)
    assert not list(tmp_path.iterdir())


def test_help_names_the_experiment_and_its_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        called("--help")
    shown = capsys.readouterr().out
    for text in "scripts/run test_harness", "An experiment of the tests: it adds.", "--numbers", "Of the parameters":
        assert text in shown


def test_a_run_refused_for_its_data_leaves_nothing_behind(tmp_path, capsys):
    def experiment(config, run):
        raise UserError("no images")

    refused(capsys, "--out", tmp_path / "run", experiment=experiment)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [UserError, CheckpointMismatch])
@pytest.mark.parametrize("message", ["no [n, height] in /a/[b]", "no [/b] here", "long " * 60])
def test_an_error_is_shown_as_it_is_in_one_paragraph(tmp_path, capsys, kind, message):
    def experiment(config, run):
        raise kind(message)

    assert refused(capsys, "--out", tmp_path, experiment=experiment) == f"error: {message}\n"
    assert not (tmp_path / "result.json").exists()


def test_a_bug_is_not_hidden(tmp_path):
    def experiment(config, run):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        called("--out", tmp_path, experiment=experiment)


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys):
    def experiment(config, run):
        run.path("metrics.jsonl")
        raise KeyboardInterrupt

    folder = tmp_path / "a[b]"
    with pytest.raises(SystemExit, match="130"):
        called("--out", folder, experiment=experiment)
    assert f"Stopped. Go on with: scripts/run test_harness --resume {folder}\n" in capsys.readouterr().out


def test_ctrl_c_before_anything_was_written_leaves_nothing(tmp_path, capsys):
    def experiment(config, run):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        called("--out", tmp_path / "run", experiment=experiment)
    assert capsys.readouterr().out == "\nStopped.\n"
    assert not list(tmp_path.iterdir())


def test_a_file_of_a_run(tmp_path):
    assert Run("adding", Adding(out=tmp_path)).path("x.png") == tmp_path / "x.png"


def test_options_that_are_too_small_are_told_all_at_once():
    @dataclasses.dataclass(frozen=True)
    class Options(Config):
        epochs: int = 0
        limit: int | None = None

    with pytest.raises(UserError, match=r"--seed -1 \(at least 0\), --epochs 0 \(at least 1\)"):
        at_least(Options(seed=-1), seed=0, epochs=1, limit=3)
    at_least(Options(epochs=1), seed=0, epochs=1, limit=3)


@dataclasses.dataclass(frozen=True)
class Sized(Adding):
    preset: Literal["default", "large"] = "default"


@pytest.mark.parametrize(
    ("options", "total"),
    [([], 3), (["--preset", "large"], 300), (["--preset", "large", "--numbers", 4], 4), (["--numbers", 4], 4)],
)
def test_a_preset_gives_the_defaults_of_other_options(tmp_path, options, total):
    args = [str(arg) for arg in ["--out", tmp_path / "run", *options]]
    main(Sized, add, args, {"large": {"numbers": (100, 200)}})
    assert result(tmp_path / "run")["metrics"] == {"sum": total}
    main(Sized, add, ["--resume", str(tmp_path / "run")], {"large": {"numbers": (100, 200)}})
    assert result(tmp_path / "run")["metrics"] == {"sum": total}
