"""Translate English into French: sentences never seen, against word by word, and on from the command line."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers  # pyright: ignore[reportMissingImports]

from experiments import parallel_texts
from experiments.decoding import translate
from experiments.harness import (
    Config,
    Run,
    UserError,
    at_least,
    compare_with_jax,
    console,
    draw_training,
    main,
    name_pictures,
    saved_config,
)
from experiments.parallel_texts import Pair
from experiments.phrase_table import PhraseTable, first_translators, glossed
from experiments.tokens import bucketed, encode, filled, learn_tokenizer, shifted
from experiments.translation_report import draw_attention, quality, show
from experiments.translators import MODELS, PAD, Translator, logits
from experiments.word_alignment import word_by_word
from fbp import ops, report, train


@dataclasses.dataclass(frozen=True)
class Translation(Config):
    preset: Literal["default", "full", "large"] = "default"
    """Sizes for ten minutes of two cores, for twenty, or for minutes of a GPU."""
    data: Literal["verses", "gettext", "libreoffice", "hub"] = "verses"
    """Bible verses, messages of programs, the pages of LibreOffice's help, or a data set of Hugging Face's `datasets`."""
    data_path: str | None = None
    """File or folder of the data, if not where its package installs it; for hub NAME or NAME:PART."""
    paraphrases: bool = False
    """Learn from verses of four English and three French translators, with a token for the French one that is wanted."""
    gloss: bool = True
    """Show the model a first translation, put together of the likeliest phrases, before the English (Niehues et al. 2016):
    order, endings and choice are left to learn, which takes less than learning each word."""
    model: Literal["attention", "recurrent"] = "attention"
    vocabulary: int = 3000
    features: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.0
    buckets: tuple[int, ...] = (36, 72)
    """Numbers of tokens to which sentences are filled up; pairs longer than the last are not learnt from."""
    batch_tokens: int = 1024
    """Of the target in a batch, so that there are more sentences in one of short ones."""
    epochs: int = 2
    learning_rate: float = 4e-3
    """The highest of a cosine schedule with warm-up."""
    label_smoothing: float = 0.1
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the forward and the backward pass compute in."""
    beams: int = 4
    limit: int | None = None
    """Use only so many training pairs, and a tenth as many for validation and testing, for a quick look."""
    translate: str | None = None
    """Train nothing, but translate this English sentence by the run of --checkpoint."""
    checkpoint: pathlib.Path | None = None
    """The folder of a run."""

    @property
    def source_parts(self) -> int:
        """How many texts a source has: the gloss and the English."""
        return 1 + self.gloss

    @property
    def source_length(self) -> int:
        return self.source_parts * self.buckets[-1]


PRESETS: dict[str, dict[str, Any]] = {
    "full": {"epochs": 4},
    "large": {
        "paraphrases": True, "gloss": False, "features": 512, "layers": 4, "heads": 8, "vocabulary": 8000, "epochs": 2,
        "dropout": 0.1, "buckets": (48, 96), "batch_tokens": 12_288, "learning_rate": 1e-3, "precision": "bfloat16",
    },
}  # fmt: skip


def experiment(config: Translation, run: Run) -> None:
    if list(config.buckets) != sorted({*config.buckets}) or not config.buckets or config.buckets[0] < 1:
        raise UserError(
            f"--buckets {config.buckets} are not rising numbers of tokens. Give for example --buckets 36 72."
        )
    length = config.buckets[-1]
    at_least(config, seed=0, epochs=1, vocabulary=300, layers=1, heads=1, beams=1, limit=10, batch_tokens=length)
    if config.gloss and config.paraphrases:
        raise UserError(
            "--paraphrases: a gloss is of one translator, whose phrases the others repeat. Give --no-gloss too."
        )
    if config.translate is not None:
        return translate_one(config.translate, config.checkpoint)
    corpus = parallel_texts.load(config.data, config.data_path, config.paraphrases)
    held = config.limit and config.limit // 10
    learnt, validation, test = corpus.train[: config.limit], corpus.validation[:held], corpus.test[:held]
    table, phrases = PhraseTable.of(*first_translators(learnt))
    table.save(run.path("phrases.json.gz"))
    by_words = [word_by_word(table.by_words, pair.english) for pair in test]
    glossed_test = glossed(test, table)
    by_phrases = [pair.gloss for pair in glossed_test]
    if config.gloss:
        learnt, validation, test = glossed(learnt, table, phrases), glossed(validation, table), glossed_test
    del phrases
    tokenizer = learn_tokenizer(learnt, config.vocabulary)
    tokenizer.save(str(run.path("tokenizer.json")))
    model = build(config, tokenizer)
    batches, used = bucketed(
        encode(tokenizer, learnt), config.buckets, config.batch_tokens, config.seed, config.source_parts
    )
    steps = config.epochs * batches.steps_per_epoch
    optimizer = make_optimizer(config, steps)
    policy = train.FLOAT32 if config.precision == "float32" else train.BFLOAT16

    def loss_fn(params, model_state, batch, rng):
        source, target = batch["source"], batch["target"]
        features, model_state = model.layer.apply(params, model_state, source, shifted(target), train=True, rng=rng)
        table, smoothing = params["embed"]["embedding"].T, config.label_smoothing
        loss = ops.linear_cross_entropy(features, table, target, where=target != PAD, label_smoothing=smoothing)
        return loss, (model_state, {})

    @jax.jit
    def is_right(state, both):
        source, target = jnp.split(both, [config.source_length], 1)
        features, _ = model.layer.apply(state.params, state.model_state, source, shifted(target))
        return jnp.argmax(logits(state.params, features), -1) == target

    sizes = config.source_length, length
    both = np.array([np.concatenate([*map(filled, pair, sizes)]) for pair in encode(tokenizer, validation)])

    def scores(state):
        right = train.evaluate(is_right, state, both, 100)
        return {"validation_accuracy": float(np.mean(right[both[:, config.source_length :] != PAD]))}

    state = initial = train.init_state(model.layer, optimizer, jax.random.key(config.seed), both[:1], both[:1, :length])
    names = report.parameter_names(state.params)
    checkpoints = train.Checkpoints(run.path("checkpoints"))
    if config.resume:
        state = checkpoints.restore(state) if checkpoints.latest() is not None else state
        console.print(f"resumed at step {int(state.step)} of {steps}")
    weights = sum(x.size for x in jax.tree.leaves(state.params))
    console.print(
        f"{config.data}: {used:,} of {len(learnt):,} pairs to learn from, {len(validation)} for validation, {len(test)} to test; "
        f"{config.model}: {weights:,} weights"
    )
    agreement = compare_with_jax(loss_fn, initial, next(batches.from_step(0)))

    step = train.make_train_step(loss_fn, optimizer, policy=policy)
    state = train.fit(
        state, step, batches, steps, metrics_file=run.path("metrics.jsonl"), checkpoints=checkpoints, evaluate=scores
    )
    checkpoints.close()

    translated = translate(model, tokenizer, state, test, config.source_length, length, config.beams)
    truth = [pair.french for pair in test]
    metrics = quality(translated, truth) | quality(by_words, truth, "baseline_") | agreement
    metrics |= quality(by_phrases, truth, "baseline_phrases_")
    show(run, test, translated, by_words, by_phrases)
    draw_training(run, names, "validation_accuracy")
    draw_attention(run, model, state.params, tokenizer, test, translated)
    name_pictures(run)
    for name, value in metrics.items():
        shown = value if isinstance(value, str) else f"{value:.4g}"
        console.print(f"{name.replace('_', ' ')}: {shown}", soft_wrap=True)
    run.finish(metrics)


def build(config: Translation, tokenizer) -> Translator:
    if config.features % (2 * config.heads):
        raise UserError(
            f"--features {config.features} is no multiple of twice --heads {config.heads}. Change one of them."
        )
    sizes = (
        tokenizer.get_vocab_size(),
        config.features,
        config.layers,
        config.heads,
        config.dropout,
        config.source_length,
    )
    return MODELS[config.model](*sizes)


def make_optimizer(config: Translation, steps: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, steps // 10, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=1e-2))


def translate_one(sentence: str, folder: pathlib.Path | None) -> None:
    """Prints what a trained model makes of a sentence."""
    if folder is None:
        raise UserError("--translate needs a trained model: name the folder of its run with --checkpoint.")
    config = saved_config(Translation, folder, "--checkpoint")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = build(config, tokenizer)
    one = jax.ShapeDtypeStruct((1, config.buckets[-1]), jnp.int32)
    state = train.init_state(model.layer, make_optimizer(config, 10), jax.random.key(0), one, one)
    checkpoints = train.Checkpoints(folder / "checkpoints")
    if checkpoints.latest() is None:
        raise UserError(
            f"--checkpoint {folder}: the run was stopped before its first epoch ended. Go on with it by --resume."
        )
    state = checkpoints.restore(state)
    pairs = [Pair(sentence, "", "")]
    pairs = glossed(pairs, PhraseTable.load(folder / "phrases.json.gz")) if config.gloss else pairs
    (french,) = translate(model, tokenizer, state, pairs, config.source_length, config.buckets[-1], config.beams)
    console.print(french, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(Translation, experiment, presets=PRESETS)
