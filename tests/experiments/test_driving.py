import json
import sys

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from experiments.driving import Driving, experiment
from experiments.harness import main
from experiments.racing import (
    FULL_LOCK,
    WHEELBASE,
    Line,
    Memory,
    controls,
    expert,
    grey,
    joined,
    new_environment,
    racing_line,
)  # fmt: skip

SIZES = {"rounds": 1, "laps": 1, "steps": 3, "batch-size": 8, "width": 4, "tracks": 1, "frames": 40}
OPTIONS = [word for name, size in SIZES.items() for word in (f"--{name}", size)]


def needs_the_environment():
    for package in "gymnasium", "Box2D", "pygame":
        pytest.importorskip(package)


def circle(radius, n=300):
    angles = 2 * np.pi * np.arange(n) / n
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def test_the_speed_of_a_circle_is_what_the_tyres_hold():
    line = racing_line(circle(40.0), lateral=160.0)
    np.testing.assert_allclose(line.speeds, 80.0, rtol=1e-2)  # v² / r = 160
    np.testing.assert_allclose(np.hypot(*line.points.T), 40.0, rtol=1e-2)


def test_the_brakes_can_follow_the_speeds():
    stretched = circle(40.0) * [5.0, 1.0]
    line = racing_line(stretched, lateral=100.0, braking=30.0, top=90.0)
    ds = np.hypot(*(np.roll(line.points, -1, 0) - line.points).T)
    slowing = line.speeds**2 - np.roll(line.speeds, -1) ** 2
    assert line.speeds.min() < 50 < line.speeds.max() <= 90
    assert (slowing <= 2 * 30.0 * ds * (1 + 1e-9)).all() and (slowing > 2 * 29.9 * ds).any()


@pytest.mark.parametrize("side", [-1, 0, 1])
def test_the_expert_turns_to_the_line_and_spares_gas(side):
    straight = Line(np.stack([np.zeros(100), np.arange(100.0)], 1), np.full(100, 20.0))
    wheel, pedal = expert(straight, np.array([2.0 * side, 50.0]), angle=0.0, speed=0.0)
    distance = np.hypot(2 * side, 8)
    assert wheel == pytest.approx(np.arctan(WHEELBASE * 2 * 2 * side / distance**2) / FULL_LOCK)  # to the left is 1
    assert pedal == pytest.approx(1 - 0.7 * abs(wheel) if side else 0.04 * 20)
    assert expert(straight, np.array([0.0, 50.0]), 0.0, speed=60.0)[1] == -1


def test_the_expert_turns_round_slowly():
    straight = Line(np.stack([np.zeros(100), np.arange(100.0)], 1), np.full(100, 90.0))
    wheel, pedal = expert(
        straight, np.array([-1.0, 50.0]), angle=np.pi, speed=15.0
    )  # the line is to the left, and behind
    assert (wheel, pedal) == (1, 0)


def test_controls_are_steering_to_the_right_gas_and_brake():
    np.testing.assert_allclose(controls(np.array([1.0, 0.5])), [-0.4, 0.5, 0])
    np.testing.assert_allclose(controls(np.array([-3.0, -1.0])), [0.4, 0, 0.8])


def test_stacks_do_not_look_back_beyond_their_lap():
    shades = np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    laps = [Memory(shades + np.uint8(10 * i), np.zeros((3, 2)), np.zeros(3, int)) for i in range(2)]
    memory = joined([joined(laps), laps[1]])
    stacks = memory.stacks(np.array([0, 2, 3, 4, 8]), 3)
    assert stacks.shape == (5, 2, 2, 3)
    assert stacks[:, 0, 0].tolist() == [[0, 0, 0], [2, 1, 0], [10, 10, 10], [11, 10, 10], [12, 11, 10]]


def test_grey_keeps_white_and_weighs_green_most():
    assert grey(np.array([[255, 255, 255], [0, 255, 0], [0, 0, 255]], np.uint8)).tolist() == [255, 150, 29]


def driven(folder, *options):
    main(Driving, experiment, [str(arg) for arg in options or [*OPTIONS, "--out", folder]])
    return json.loads((folder / "result.json").read_text())["metrics"], (folder / "metrics.jsonl").read_text()


def test_a_run_leaves_its_files_and_goes_on_after_a_stop(tmp_path, capsys):
    needs_the_environment()
    whole = driven(tmp_path / "run")
    assert whole[0]["gradient_max_relative_difference"] < 1e-5
    assert {f"{who}score_{name}" for who in ("", "baseline_") for name in ("mean", "std", "min")} < {*whole[0]}
    for name in "gradient_norms", "learning_curve", "scores", "stills":
        assert matplotlib.image.imread(tmp_path / "run" / f"{name}.png").std() > 0.01
    assert (tmp_path / "run" / "scores.csv").read_text().startswith("track,the expert,from pixels\n200000.0,")
    with Image.open(tmp_path / "run" / "saliency.gif") as film:
        assert film.n_frames == 10 and film.size == (192, 192)  # one for each decision
    (tmp_path / "run" / "result.json").unlink()
    assert driven(tmp_path / "run", "--resume", tmp_path / "run") == whole
    assert "resumed at step 6 of 6" in capsys.readouterr().out


def test_a_missing_environment_is_an_error_in_one_paragraph(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(SystemExit, match="1"):
        driven(tmp_path / "run")
    error = capsys.readouterr().err
    assert "pip install -r experiments/requirements/driving.txt" in error and error.count("\n") == 1


def test_options_that_are_too_small_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        driven(tmp_path / "run", "--laps", 0, "--out", tmp_path / "run")
    assert "--laps 0 (at least 1)" in capsys.readouterr().err


def test_the_environment_is_what_the_constants_say():
    needs_the_environment()
    env = new_environment()
    env.reset(seed=0)
    wheels = [wheel.joint for wheel in env.car.wheels]
    assert wheels[0].upperLimit == pytest.approx(FULL_LOCK)
    front, rear = (np.array(wheels[i].anchorA) for i in (0, 2))
    assert np.hypot(*(front - rear)) == pytest.approx(WHEELBASE, rel=1e-3)
