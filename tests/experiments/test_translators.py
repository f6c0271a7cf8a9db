import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tokenizers")

from experiments import translators
from experiments.decoding import beam_search
from experiments.translators import END, MODELS, PAD, START

SOURCE = jnp.array([[5, 6, 7, END], [8, 9, END, PAD]])
TARGET = jnp.array([[START, 4, 6, 7, 5], [START, 9, 3, PAD, PAD]])


@pytest.fixture(params=MODELS, scope="module")
def model(request):
    model = MODELS[request.param](11, 8, 2, 2, 0.1, 6)
    params, state = jax.jit(model.layer.init)(jax.random.key(0), SOURCE, TARGET)
    return model, params, jax.jit(lambda *xs: model.layer.apply(params, state, *xs)[0])


def test_token_by_token_it_gives_what_it_gives_all_at_once(model):
    model, params, features_of = model
    whole = features_of(SOURCE, TARGET)
    (seen, kept), step = model.start(params, SOURCE, 6), jax.jit(model.step)
    for place, token in enumerate(TARGET.T):
        kept, features, weights = step(params, seen, kept, token, jnp.int32(place))
        np.testing.assert_allclose(features, whole[:, place], atol=1e-5)
        np.testing.assert_allclose(jnp.sum(weights, -1), 1, rtol=1e-5)
        assert (weights[1, 3] == 0).all()  # padding


def test_what_fills_up_a_source_and_what_comes_later_in_a_target_change_nothing(model):
    model, _, features_of = model
    features, later = features_of(SOURCE, TARGET), features_of(SOURCE, TARGET.at[:, 3:].set(10))
    np.testing.assert_allclose(features[:, :3], later[:, :3], atol=1e-6)
    if model.layer.name == "attention_model":
        longer = features_of(jnp.pad(SOURCE, [(0, 0), (0, 2)]), TARGET)
        np.testing.assert_allclose(features, longer, atol=1e-5)


def test_dropout_is_for_training_only(model):
    model, params, features_of = model
    _, state = jax.eval_shape(lambda: model.layer.init(jax.random.key(0), SOURCE, TARGET))  # it is empty
    train = jax.jit(lambda rng: model.layer.apply(params, state, SOURCE, TARGET, train=True, rng=rng)[0])
    dropped = train(jax.random.key(0))
    assert not jnp.allclose(dropped, train(jax.random.key(1)))
    assert not jnp.allclose(dropped, features_of(SOURCE, TARGET))


def test_places_are_told_apart():
    places = translators.sinusoids(100, 16)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    assert places.shape == (100, 16) and (distances[~np.eye(100, dtype=bool)] > 0.5).all()


def chain(table):
    """A model whose next token depends on the last alone, and the logits of it."""
    logits = jnp.log(jnp.array(table))
    return lambda kept, token, place: (kept, logits[token])


def test_beam_search_finds_what_greedy_search_misses():
    # after START: 3 with 0.6, then anything; 4 with 0.4, then END for sure
    step = chain([[1, 0, 0, 0, 0], [0, 0, 0, 0.6, 0.4], [1, 0, 0, 0, 0], [0, 0, 0.4, 0.3, 0.3], [0, 0, 1, 0, 0]])
    found = lambda beams: beam_search(step, (), 2, 4, beams, alpha=0.0).tolist()
    assert found(1) == [[3, END, PAD, PAD]] * 2
    assert found(2) == [[4, END, PAD, PAD]] * 2


def test_with_enough_beams_it_is_the_best_of_all_sequences():
    table = np.random.default_rng(0).dirichlet(np.ones(5), 5)
    table[:, [PAD, START]] = 0
    step, length, alpha = chain(table), 3, 0.6

    def score(tokens):
        log_p = sum(np.log(table[a, b] / table[a].sum()) for a, b in itertools.pairwise([START, *tokens]))
        return log_p / ((5 + len(tokens)) / 6) ** alpha

    words = [3, 4]
    ended = [(*w, END) for n in range(length) for w in itertools.product(words, repeat=n)]
    best = max([*ended, *itertools.product(words, repeat=length)], key=score)
    found = beam_search(step, (), 1, length, beams=30, alpha=alpha)[0]
    assert [t for t in found.tolist() if t != PAD] == list(best)


def test_what_a_beam_keeps_moves_with_it():
    table = [[1, 0, 0, 0, 0], [0, 0, 0, 0.6, 0.4], [1, 0, 0, 0, 0], [0, 0, 0.4, 0.3, 0.3], [0, 0, 1, 0, 0]]

    def step(kept, token, place):  # as before, but what comes after the second token depends on what was kept with it
        logits = jnp.log(jnp.array(table))[jnp.where(place == 2, kept[0], token)]
        return token[None], logits

    assert beam_search(step, jnp.zeros((1, 2), jnp.int32), 1, 4, 2, alpha=0.0).tolist() == [[4, END, PAD, PAD]]
