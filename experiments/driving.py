"""Drive a car from what it sees: learn by watching an expert, then by being corrected (CarRacing-v3)."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fbp
from experiments.harness import Config, Run, at_least, compare_with_jax, console, main
from experiments.racing import Lap, Memory, drive, grey, joined, memory_of
from fbp import nn, report, train

DEVELOPMENT, HELD_OUT = 100_000, 200_000  # tracks are numbered by their seeds; those to learn from are above 2^20
PRESETS = {
    "full": {"rounds": 10, "laps": 40, "steps": 2000, "width": 24},
    "large": {"rounds": 4, "laps": 20, "steps": 1500, "batch_size": 256, "width": 48},
}


@dataclasses.dataclass(frozen=True)
class Driving(Config):
    preset: Literal["default", "full", "large"] = "default"
    """Sizes for ten minutes on two cores, for two hours, or for an accelerator."""
    rounds: int = 4
    """Of DAgger (Ross et al. 2011), after a first one of behaviour cloning; 0 for cloning alone."""
    laps: int = 10
    """In each round: by the expert in the first, by what has been learned in the others."""
    steps: int = 500
    """Of training in each round, at a rate that falls to zero and starts again."""
    batch_size: int = 64
    learning_rate: float = 1e-3
    width: int = 16
    """Features of the first convolution; the later ones have two and four times as many."""
    stack: int = 3
    """How many frames, one for each decision, are seen at once."""
    repeat: int = 4
    """Frames for which a command is held; there are 50 in a second."""
    tracks: int = 50
    """Held out, for the score."""
    frames: int = 1000
    """The longest that a lap may take."""


def network(width: int) -> nn.Layer:
    """Three convolutions with strides (as Mnih et al. 2015) from stacked frames to (wheel, pedal)."""
    see = [
        nn.conv(width, (8, 8), strides=4), nn.relu(),
        nn.conv(2 * width, (4, 4), strides=2), nn.relu(),
        nn.conv(4 * width, (3, 3), strides=2), nn.relu(),
    ]  # fmt: skip
    return nn.sequential(*see, nn.flatten(), nn.dense(8 * width), nn.relu(), nn.dense(2))


def experiment(config: Driving, run: Run) -> None:
    at_least(config, seed=0, rounds=0, laps=1, steps=1, batch_size=1, width=1, stack=1, repeat=1, tracks=1, frames=1)
    layer = network(config.width)
    steps = config.steps * (config.rounds + 1)
    cosine = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.adam(
        optax.join_schedules([cosine] * (config.rounds + 1), range(config.steps, steps, config.steps))
    )

    def commands(params, model_state, stacks):
        return layer.apply(params, model_state, stacks.astype(jnp.float32) / 255 - 0.5)[0]

    def loss_fn(params, model_state, batch, rng):
        said = commands(params, model_state, batch["stacks"])
        return nn.mean_squared_error(said, batch["commands"]), (model_state, {})

    predict = jax.jit(lambda state, stacks: commands(state.params, state.model_state, stacks)[0])

    def driver(state):
        def policy(frames):
            newest = [frames[max(len(frames) - 1 - i, 0)] for i in range(config.stack)]
            return np.asarray(predict(state, np.moveaxis(grey(np.array(newest)), 0, -1)[None]))

        return policy

    def scores(policy, first_track, tracks, look=True):
        laps = (drive(first_track + i, policy, config.repeat, config.frames, look=look) for i in range(tracks))
        return np.array([lap.score for lap in laps])

    def after_round(state):
        driven = scores(driver(state), DEVELOPMENT, max(config.tracks // 5, 1))
        return {"score": driven.mean(), "worst_score": driven.min()}

    example = np.zeros((1, 96, 96, config.stack), np.float32)
    state = initial = train.init_state(layer, optimizer, jax.random.key(config.seed), example)
    names = report.parameter_names(state.params)
    weights = sum(x.size for x in jax.tree.leaves(state.params))
    console.print(f"{weights:,} weights; {config.rounds} rounds of correction, {config.laps} laps in each")
    expert_scores = scores(None, HELD_OUT, config.tracks, look=False)
    console.print(f"the expert, on {config.tracks} held-out tracks: {spread(expert_scores)}")
    checkpoints = train.Checkpoints(run.path("checkpoints"))
    if config.resume:
        state = checkpoints.restore(state) if checkpoints.latest() is not None else state
        console.print(f"resumed at step {int(state.step)} of {steps}")

    step = train.make_train_step(loss_fn, optimizer)
    memory = remembered(config, run, 0, None)
    agreement = compare_with_jax(loss_fn, initial, next(batches_of(memory, config, 0).from_step(0)))
    for i in range(config.rounds + 1):
        memory = joined([memory, remembered(config, run, i, driver(state))]) if i else memory
        batches = batches_of(memory, config, i)
        console.print(f"round {i}: {len(memory.frames):,} frames")
        state = train.fit(
            state, step, batches, config.steps * (i + 1), metrics_file=run.path("metrics.jsonl"), checkpoints=checkpoints,
            evaluate=after_round,
        )  # fmt: skip
    checkpoints.close()

    driven = scores(driver(state), HELD_OUT, config.tracks)
    console.print(f"what was learned, on the same tracks: {spread(driven)}")
    draw(run, names, {"the expert": expert_scores, "from pixels": driven})
    lap = drive(HELD_OUT, driver(state), config.repeat, config.frames)
    films(run, lap, saliency(commands, state, lap, config.stack), 50 / config.repeat)
    metrics = {f"score_{name}": float(f(driven)) for name, f in STATISTICS.items()}
    metrics |= {f"baseline_score_{name}": float(f(expert_scores)) for name, f in STATISTICS.items()}
    run.finish(metrics | agreement)


STATISTICS = {"mean": np.mean, "std": np.std, "min": np.min}


def spread(scores: np.ndarray) -> str:
    return f"{scores.mean():.0f} ± {scores.std():.0f}, the worst {scores.min():.0f}"


def remembered(config: Driving, run: Run, i: int, policy) -> Memory:
    """The laps of round i: from the run's folder if it has them, else driven, and kept there."""
    path = run.path(f"round_{i}.npz")
    if not path.exists():
        tracks = np.random.default_rng((config.seed, i, 1)).integers(2**20, 2**30, config.laps)
        laps = [drive(int(track), policy, config.repeat, config.frames, give_up=15) for track in tracks]
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **memory_of(laps)._asdict())
        os.replace(temporary, path)
    return Memory(**np.load(path))


def batches_of(memory: Memory, config: Driving, i: int) -> train.Batches:
    """Batches of a round, which is one epoch of rows drawn from all that is remembered."""
    rows = np.random.default_rng((config.seed, i)).integers(len(memory.frames), size=config.steps * config.batch_size)

    def gather(batch, rng):
        return {"stacks": memory.stacks(batch["row"], config.stack), "commands": memory.commands[batch["row"]]}

    return train.Batches({"row": rows}, config.batch_size, config.seed, gather)


def saliency(commands, state, lap: Lap, depth: int) -> np.ndarray:
    """|∂wheel / ∂pixel| for the newest frame of every decision: [n, 96, 96]."""
    memory = memory_of([lap])
    wheel = lambda stacks: jnp.sum(commands(state.params, state.model_state, stacks)[:, 0])
    gradient = jax.jit(fbp.grad(wheel))
    rows = np.arange(len(memory.frames))
    parts = np.array_split(rows, -(-len(rows) // 50))
    return np.concatenate([np.abs(gradient(memory.stacks(p, depth).astype(np.float32)))[..., 0] for p in parts])


def draw(run: Run, parameters: list[str], scores: dict[str, np.ndarray]) -> None:
    records = [json.loads(line) for line in run.path("metrics.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["loss"] for r in records if "loss" in r}
    tested = {name: {r["step"]: r[name] for r in records if name in r} for name in ("score", "worst_score")}
    report.learning_curve(run.path("learning_curve.png"), losses, tested, "loss, and the score after each round")
    norms = {r["step"]: r["grad_norm"] for r in records if "grad_norm" in r}
    report.gradient_flow(run.path("gradient_norms.png"), norms, parameters)
    table = np.c_[HELD_OUT + np.arange(len(scores["the expert"])), *scores.values()]
    np.savetxt(run.path("scores.csv"), table, "%.1f", ",", header=f"track,{','.join(scores)}", comments="")
    report.score_strips(run.path("scores.png"), scores, 900, "held-out tracks; the line is what counts as solved")


def films(run: Run, lap: Lap, salient: np.ndarray, rate: float) -> None:
    """The lap as it was seen, and the same with what steered it in orange: two films, and a page of stills."""
    heated = report.heated(grey(lap.frames), salient)
    report.film(run.path("lap.gif"), lap.frames, rate)
    report.film(run.path("saliency.gif"), heated, rate)
    chosen = np.linspace(0.1, 0.9, 6) * (len(lap.frames) - 1)
    rows = {"seen": lap.frames[chosen.astype(int)], "what steers": heated[chosen.astype(int)]}
    report.image_rows(run.path("stills.png"), rows, [f"{i / rate:.1f} s" for i in chosen.astype(int)],
                      f"a lap on a held-out track, score {lap.score:.0f}; orange: |∂wheel / ∂pixel|")  # fmt: skip
    pictures = ", ".join(str(path) for path in sorted(run.folder.iterdir()) if path.suffix in {".png", ".gif"})
    console.print(f"pictures: {pictures}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(Driving, experiment, presets=PRESETS)
