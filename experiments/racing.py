"""Gymnasium's CarRacing-v3 seen by a driver: a track, its frames, and an expert who knows the map.

The expert follows the smoothed centre line by pure pursuit (Coulter 1992), at a speed that the tyres can hold in every
curve and that the brakes can reach before it. A command is (wheel, pedal), both in [-1, 1]: wheel is the share of full
lock to the left, pedal is gas if positive, brake if negative.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.harness import UserError

FULL_LOCK = 0.4  # radians: what the environment's steering joints allow
WHEELBASE = 3.24  # metres, between the axles
Policy = Callable[[list[np.ndarray]], np.ndarray]


class Line(NamedTuple):
    """What the expert follows: points [n, 2] of a closed curve in metres, and the speed [n] to have at each of them."""

    points: np.ndarray
    speeds: np.ndarray


class Lap(NamedTuple):
    """One drive: a frame [n, 96, 96, 3] (uint8) and the expert's command [n, 2] for every decision, and the score."""

    frames: np.ndarray
    commands: np.ndarray
    score: float


class Memory(NamedTuple):
    """What the expert would have done in every frame that was seen. frames: uint8 [n, 96, 96], commands: [n, 2], and for
    each frame the number of the first of its lap."""

    frames: np.ndarray
    commands: np.ndarray
    first: np.ndarray

    def stacks(self, rows: np.ndarray, depth: int) -> np.ndarray:
        """Each frame with those before it, newest first, as [rows, 96, 96, depth]. Before a lap all frames are its first."""
        before = np.maximum(rows[:, None] - np.arange(depth), self.first[rows, None])
        return np.moveaxis(self.frames[before], 1, -1)


def racing_line(centre: np.ndarray, lateral=200.0, braking=50.0, top=100.0, window=9) -> Line:
    """The centre line [n, 2] smoothed over `window` points, which cuts corners a little, and the speeds along it:

    v_i = min(top, sqrt(lateral / |curvature_i|), sqrt(v_{i+1}² + 2 braking ds_i)),

    from the last point to the first, twice, since the track is closed. The accelerations are in m/s².
    """
    kernel = np.ones(window) / window
    points = np.stack([np.convolve(np.pad(x, window // 2, "wrap"), kernel, "valid") for x in centre.T], 1)
    ahead = np.roll(points, -1, 0) - points
    ds = np.hypot(*ahead.T)
    direction = ahead @ [1, 1j]
    turn = np.abs(np.angle(direction / np.roll(direction, 1)))
    speeds = np.minimum(top, np.sqrt(lateral * ds / np.maximum(turn, 1e-9)))
    for i in reversed([*range(len(speeds))] * 2):
        after = speeds[(i + 1) % len(speeds)]
        speeds[i] = min(speeds[i], np.sqrt(after**2 + 2 * braking * ds[i]))
    return Line(points, speeds)


def expert(line: Line, position: np.ndarray, angle: float, speed: float) -> np.ndarray:
    """Steers the arc through a point of the line 8 m ahead and more when fast; gas and brake by the speed to have.

    With the point at distance d, y to the left of the car's axis, the arc's curvature is 2 y / d² (Coulter 1992), and a
    car of wheelbase L drives it with its wheels at atan(2 L y / d²). Who teaches must also know the way back: a car that
    does not face the line slows down, since in a spin no wheel steers, and gas is spared in curves.
    """
    nearest = int(np.argmin(np.hypot(*(line.points - position).T)))
    spacing = np.hypot(*(line.points[1] - line.points[0]))
    target = line.points[(nearest + round((8 + 0.1 * speed) / spacing)) % len(line.points)] - position
    ahead = target @ [-np.sin(angle), np.cos(angle)]  # at angle 0 the car looks along y
    left = target @ [-np.cos(angle), -np.sin(angle)]
    distance = np.hypot(ahead, left)
    wheel = np.arctan(2 * WHEELBASE * left / distance**2) / FULL_LOCK if ahead > 0 else np.sign(left)
    wheel = np.clip(wheel, -1, 1)
    wanted = 15 + (line.speeds[nearest] - 15) * max(ahead / distance, 0) ** 4
    return np.array([wheel, np.clip(0.04 * (wanted - speed), -1, 1 - 0.7 * abs(wheel))], np.float32)


def controls(command: np.ndarray) -> np.ndarray:
    """The environment's action: steering to the right in radians, gas, brake. From 0.9 on the wheels would block."""
    wheel, pedal = np.clip(command, -1, 1)
    return np.array([-FULL_LOCK * wheel, max(pedal, 0), 0.8 * max(-pedal, 0)])


def drive(
    track: int, policy: Policy | None, repeat: int, limit: int = 1000, give_up: float = np.inf, look: bool = True
) -> Lap:
    """Drives the track of a seed by `policy(frames so far)`, or by the expert, deciding at every `repeat`-th frame.

    The lap ends at the finish, outside the field, after `limit` frames, or `give_up` metres off the line. The expert's
    command is noted at every decision, whoever drives: that is what DAgger learns from. The expert need not `look`.
    """
    env = new_environment()
    env.reset(seed=track)
    draw, env._render = env._render, lambda mode: None  # it would draw at every step, which is 99% of a step's time
    line = racing_line(np.array(env.track)[:, 2:])
    frames, commands, score = [], [], 0.0
    for time in range(limit):
        if time % repeat == 0:
            hull = env.car.hull
            position = np.array(hull.position)
            if np.min(np.hypot(*(line.points - position).T)) > give_up:
                break
            commands.append(expert(line, position, hull.angle, hull.linearVelocity.length))
            if look:
                frames.append(draw("state_pixels"))
            action = controls(commands[-1] if policy is None else policy(frames))
        _, reward, finished, _, _ = env.step(action)
        score += float(reward)
        if finished:
            break
    return Lap(np.array(frames), np.array(commands), score)


def new_environment() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import Box2D  # noqa: F401  # pyright: ignore[reportMissingImports]  (what the environment itself needs)
        import gymnasium  # pyright: ignore[reportMissingImports]
        import pygame  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"the racing environment is not installed ({error}). Install it with: "
            "pip install -r experiments/requirements/driving.txt"
        ) from None
    return gymnasium.make("CarRacing-v3").unwrapped


def memory_of(laps: list[Lap]) -> Memory:
    return joined([Memory(grey(lap.frames), lap.commands, np.zeros(len(lap.frames), int)) for lap in laps])


def joined(parts: list[Memory]) -> Memory:
    starts = np.cumsum([0, *(len(part.frames) for part in parts[:-1])])
    first = [part.first + start for part, start in zip(parts, starts, strict=True)]
    return Memory(
        np.concatenate([p.frames for p in parts]), np.concatenate([p.commands for p in parts]), np.concatenate(first)
    )


def grey(frames: np.ndarray) -> np.ndarray:
    """The luma of uint8 colours [..., 3]."""
    return np.round(frames @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)
