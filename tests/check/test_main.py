import json

import pytest

from fbp.check import __main__ as command
from fbp.check.suite import Outcome


def test_one_chapter_as_a_table_and_as_json(tmp_path, capsys):
    file = tmp_path / "outcomes.json"
    assert command.main(["--chapter", "ordering", "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("ordering") and lines[2].endswith("ok") and "all agree with jax.grad" in lines[3]
    outcomes = json.loads(file.read_text())["outcomes"]
    assert {row["chapter"] for row in outcomes} == {"ordering"} and all(row["checks"] > 0 for row in outcomes)


def test_a_disagreement_is_told_and_is_exit_status_1(monkeypatch, capsys):
    monkeypatch.setattr(command, "run_case", lambda case, dtype: Outcome(case.name, dtype, 1.0, 9.0, 1, ("jit: off",)))
    assert command.main(["--chapter", "ordering"]) == 1
    output = capsys.readouterr().out
    assert "sort in float64: jit: off" in output and "comparisons disagree" in output


def test_unknown_chapters_are_refused(capsys):
    with pytest.raises(SystemExit) as info:
        command.main(["--chapter", "sorting", "ordering", "--chapter", "sums"])
    assert (
        info.value.code == 2
        and "there is no chapter sorting, sums; the chapters are bounded, calls, " in capsys.readouterr().err
    )
