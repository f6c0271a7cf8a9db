"""Generate text: a language model against xz and n-grams, on source code or reviews."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import corpora
from experiments import language_models as lm
from experiments.harness import Config, Run, UserError, at_least, compare_with_jax, console, main, saved_config
from fbp import nn, ops, report, train


@dataclasses.dataclass(frozen=True)
class TextGeneration(Config):
    preset: Literal["default", "full", "large"] = "default"
    """Sets the sizes below: for ten minutes or two hours of two cores, or for four minutes of a large GPU."""
    data: Literal["python", "reviews"] = "python"
    """The source of Python's standard library; reviews of films."""
    data_folder: pathlib.Path | None = None
    """A folder of Python source instead of the standard library."""
    tokens: Literal["bpe", "bytes"] = "bpe"
    """Byte pairs that are learned from the training text, or its bytes."""
    vocabulary: int = 2048
    """Byte pairs."""
    features: int = 128
    depth: int = 4
    heads: int = 4
    context: int = 128
    """Tokens that the model sees at most."""
    dropout: float = 0.0
    steps: int = 1200
    batch_size: int = 32
    learning_rate: float = 3e-3
    """The highest of a cosine schedule with warm-up."""
    weight_decay: float = 0.1
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the forward and the backward pass compute in."""
    limit: int | None = None
    """Use only so many bytes of the training text, and of the text that is held out, for a quick look."""
    generate: str | None = None
    """Go on from this prompt with the model of --checkpoint, and do nothing else."""
    checkpoint: pathlib.Path | None = None
    """Folder of the run whose model generates."""
    length: int = 200
    """Tokens to generate."""
    temperature: float = 0.8
    """0 takes the likeliest token, 1 the model's own probabilities."""
    top_k: int = 0
    """Only from the k likeliest tokens; 0 means all."""
    top_p: float = 0.95
    """Only from the fewest of the likeliest tokens whose probabilities come to p."""


PRESETS = {
    "full": {"vocabulary": 4096, "features": 256, "depth": 6, "context": 256, "dropout": 0.1, "steps": 3000},
    "large": {
        "vocabulary": 4096, "features": 512, "depth": 8, "heads": 8, "context": 512, "dropout": 0.2, "steps": 1000,
        "batch_size": 128, "learning_rate": 2e-3, "precision": "bfloat16",
    },
}  # fmt: skip
PROMPTS = {"python": "def read_lines(path, encoding=", "reviews": "This film is"}
EVALUATE_EVERY = 100  # steps


def experiment(config: TextGeneration, run: Run) -> None:
    least = dict.fromkeys(("depth", "heads", "steps", "batch_size", "length"), 1)
    at_least(config, seed=0, context=2, limit=1000, vocabulary=256, top_k=0, temperature=0, **least)
    if config.features % (2 * config.heads):
        raise UserError(
            f"--features {config.features} is no multiple of 2 x --heads {config.heads}. Change one of them."
        )
    if not (0 < config.top_p <= 1 and 0 <= config.dropout < 1):
        raise UserError(
            f"--top-p {config.top_p}, --dropout {config.dropout}: give a top-p above 0 up to 1, a dropout below 1."
        )
    if config.generate is not None:
        return go_on(config, config.generate)
    source, held_out = (text[: config.limit] for text in corpora.load(config.data, config.data_folder))
    metrics = baselines(source.encode(), held_out.encode())
    tokenizer = tokenizer_of(config, run.path("tokenizer.json"), source)
    ids, held_out_ids = tokenizer.encode(source), tokenizer.encode(corpora.END + held_out)
    if len(ids) <= config.context:
        raise UserError(f"the text has {len(ids)} tokens, no more than --context {config.context}. Give a longer text.")
    model, optimizer, policy = parts_of(config, tokenizer)
    chunk = None if jax.default_backend() == "cpu" else 8192  # tokens whose logits are made at a time

    def loss_fn(params, model_state, batch, rng):
        tokens = batch["tokens"]
        x, model_state = model.layer.apply(params, model_state, tokens[:, :-1], train=True, rng=rng)
        return ops.linear_cross_entropy(x, lm.kernel(params), tokens[:, 1:], chunk_size=chunk), (model_state, {})

    @jax.jit
    def bits(state, tokens):
        """-log2 p of each token but the first: [batch, time]."""
        params = policy.to_compute(state.params)
        x, _ = model.layer.apply(params, state.model_state, tokens[:, :-1])
        logits = jnp.matmul(x, lm.kernel(params), preferred_element_type=jnp.float32)
        return nn.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]) / math.log(2)

    bytes_per_token = len(held_out.encode()) / (len(held_out_ids) - 1)
    few = corpora.windows(held_out_ids[: 1 + 20_000], config.context, config.context)

    def scores(state):
        return {"bits_per_byte": told(bits, state, few, config.batch_size).mean() / bytes_per_token}

    state = initial = train.init_state(model.layer, optimizer, jax.random.key(config.seed), ids[None, : config.context])
    checkpoints = train.Checkpoints(run.path("checkpoints"))
    if config.resume and checkpoints.latest() is not None:
        state = checkpoints.restore(state)
        console.print(f"resumed at step {int(state.step)} of {config.steps}")
    weights = sum(x.size for x in jax.tree.leaves(state.params))
    times = config.steps * config.batch_size * config.context / len(ids)
    console.print(
        f"{config.data}: {len(ids):,} tokens, read {times:.2g} times; {len(held_out_ids) - 1:,} held out; {weights:,} weights"
    )
    batches = corpora.sampled(ids, config.context, config.batch_size, EVALUATE_EVERY, config.seed)
    metrics |= compare_with_jax(loss_fn, initial, {"tokens": next(batches.from_step(0))["tokens"][:16]})
    step, log = train.make_train_step(loss_fn, optimizer, policy=policy), run.path("metrics.jsonl")
    state = train.fit(state, step, batches, config.steps, metrics_file=log, checkpoints=checkpoints, evaluate=scores)
    checkpoints.close()

    found = told(bits, state, corpora.windows(held_out_ids, config.context, config.context // 2), config.batch_size)
    metrics = {"bits_per_byte": float(found.mean() / bytes_per_token), **metrics}
    draw(run, metrics, [tokenizer.decode([i]) for i in held_out_ids[1:601]], found[:600])
    sample = generated(config, model, state.params, tokenizer, PROMPTS[config.data])
    run.path("sample.txt").write_text(sample)
    console.print(f"\n{sample}\n", markup=False)
    for name, value in metrics.items():
        console.print(f"{name.replace('_', ' ')}: {value:.4g}")
    run.finish(metrics)


def baselines(source: bytes, held_out: bytes) -> dict[str, float]:
    found = {"xz": lm.xz_bits_per_byte(source, held_out), "ngrams": lm.ngram_bits_per_byte(source, held_out)}
    return {f"baseline_{name}_bits_per_byte": bits for name, bits in found.items()}


def tokenizer_of(config: TextGeneration, path: pathlib.Path, source: str | None = None) -> corpora.Tokenizer:
    return corpora.BYTES if config.tokens == "bytes" else corpora.byte_pairs(path, config.vocabulary, source)


def parts_of(config: TextGeneration, tokenizer: corpora.Tokenizer):
    """The model, its optimizer, and the precision to compute in."""
    model = lm.transformer(tokenizer.size, config.features, config.depth, config.heads, config.dropout)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.steps // 20, config.steps)
    adam = optax.adamw(schedule, b2=0.95, weight_decay=config.weight_decay)
    policy = train.FLOAT32 if config.precision == "float32" else train.BFLOAT16
    return model, optax.chain(optax.clip_by_global_norm(1.0), adam), policy


def told(bits, state, windows: tuple[np.ndarray, np.ndarray], batch_size: int) -> np.ndarray:
    """The bits of each token that the windows tell, one after the other."""
    tokens, fresh = windows
    return train.evaluate(bits, state, tokens, batch_size)[fresh].astype(np.float64)


def generated(config: TextGeneration, model: lm.Model, params, tokenizer: corpora.Tokenizer, prompt: str) -> str:
    """The prompt, as the beginning of a document, and how the model goes on, to the end of the document at most."""
    start, rng = tokenizer.encode(corpora.END + prompt), jax.random.key(config.seed)
    how = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
    tokens = lm.generate(model, params, start, config.length, config.context, rng, **how)
    return prompt + tokenizer.decode(tokens.tolist()).split(corpora.END)[0]


def go_on(config: TextGeneration, prompt: str) -> None:
    """Generates with the model of another run."""
    if config.checkpoint is None:
        raise UserError(
            "--generate needs a trained model. Name the folder of its run: --checkpoint runs/text_generation/..."
        )
    saved = saved_config(TextGeneration, config.checkpoint, "--checkpoint")
    tokenizer = tokenizer_of(saved, config.checkpoint / "tokenizer.json")
    model, optimizer, _ = parts_of(saved, tokenizer)
    like = train.init_state(model.layer, optimizer, jax.random.key(0), np.zeros((1, saved.context), np.int32))
    try:
        state = train.Checkpoints(config.checkpoint / "checkpoints").restore(like)
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    options = {name: getattr(config, name) for name in ("seed", "length", "temperature", "top_k", "top_p")}
    print(generated(dataclasses.replace(saved, **options), model, state.params, tokenizer, prompt))


def draw(run: Run, metrics: dict[str, Any], pieces: list[str], bits: np.ndarray) -> None:
    records = [json.loads(line) for line in run.path("metrics.jsonl").read_text().splitlines()]
    tested = {r["step"]: r["bits_per_byte"] for r in records if "bits_per_byte" in r}
    across = (min(tested), max(tested))
    level = lambda name: dict.fromkeys(across, metrics[f"baseline_{name}_bits_per_byte"])
    lines = {"n-grams": level("ngrams"), "xz -9": level("xz"), "transformer": tested}
    report.curves(run.path("learning_curve.png"), {"bits per byte of held-out text": lines}, "step", "bits per byte")
    report.text_page(run.path("surprise.png"), pieces, bits, "held-out text; the darker, the more bits it took to tell")


if __name__ == "__main__":
    main(TextGeneration, experiment, presets=PRESETS)
