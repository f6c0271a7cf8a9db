import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import language_models as lm

MODEL = lm.transformer(11, features=8, depth=2, heads=2)
TOKENS = jnp.arange(12).reshape(2, 6) % 11


@pytest.fixture(scope="module")
def params():
    return MODEL.layer.init(jax.random.key(0), TOKENS)[0]


def test_no_position_sees_a_later_one(params):
    other = TOKENS.at[:, 4:].set(0)
    y, z = (MODEL.layer.apply(params, {}, tokens)[0] for tokens in (TOKENS, other))
    np.testing.assert_allclose(y[:, :4], z[:, :4], atol=1e-6)
    assert not np.allclose(y[:, 4:], z[:, 4:], atol=1e-2)


def test_with_a_cache_it_gives_the_same_piece_by_piece(params):
    whole, _ = MODEL.layer.apply(params, {}, TOKENS)
    cache, features = MODEL.start(2, 8), []
    for start, end in (0, 3), (3, 4), (4, 6):
        y, cache = MODEL.step(params, TOKENS[:, start:end], jnp.int32(start), cache)
        features.append(y)
    np.testing.assert_allclose(jnp.concatenate(features, 1), whole, atol=1e-5)


def test_a_product_of_rotated_vectors_depends_on_their_distance():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    score = lambda i, j: float(jnp.sum(lm.rotated(q, jnp.array([i])) * lm.rotated(k, jnp.array([j]))))
    assert score(7, 5) == pytest.approx(score(102, 100), abs=1e-4) and abs(score(7, 5) - score(7, 6)) > 1e-3


def frequencies(logits, **how):
    how = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | how
    chosen = lm.choose(jax.random.key(0), jnp.tile(jnp.log(jnp.array(logits)), (2000, 1)), **how)
    return np.bincount(chosen, minlength=len(logits)) / 2000


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, [0.1, 0.6, 0.3]),
        ({"temperature": 0.5}, [0.01 / 0.46, 0.36 / 0.46, 0.09 / 0.46]),
        ({"temperature": 0}, [0, 1, 0]),
        ({"top_k": 2}, [0, 2 / 3, 1 / 3]),
        ({"top_p": 0.7}, [0, 2 / 3, 1 / 3]),
        ({"top_p": 0.5}, [0, 1, 0]),
        ({"top_p": 0.0, "top_k": 3}, [0, 1, 0]),
    ],
)
def test_tokens_are_chosen_with_the_probabilities_that_are_left(how, expected):
    np.testing.assert_allclose(frequencies([0.1, 0.6, 0.3], **how), expected, atol=0.04)


def test_a_generated_text_is_what_the_model_finds_likeliest_beyond_its_context_too(params):
    prompt, context = np.array([1, 2, 3]), 6
    how = {"temperature": 0, "top_k": 0, "top_p": 1.0}
    found = lm.generate(MODEL, params, prompt, 8, context, jax.random.key(0), **how)
    tokens = [*prompt.tolist()]
    seen, apply = tokens[:], jax.jit(MODEL.layer.apply)
    for _ in range(8):
        seen = seen[-(context // 2) :] if len(seen) >= context else seen
        features, _ = apply(params, {}, jnp.array([seen]))
        tokens.append(int(jnp.argmax(features[0, -1] @ lm.kernel(params))))
        seen = [*seen, tokens[-1]]
    assert found.tolist() == tokens[3:]


def test_dropout_is_of_training_alone():
    model = lm.transformer(11, features=8, depth=2, heads=2, rate=0.5)
    params, _ = model.layer.init(jax.random.key(0), TOKENS)
    apply = lambda **how: model.layer.apply(params, {}, TOKENS, **how)[0]
    assert np.array_equal(apply(), apply(rng=jax.random.key(1)))
    assert not np.allclose(apply(), apply(train=True, rng=jax.random.key(1)))


def test_xz_has_little_to_add_for_what_it_knows():
    text = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8).tobytes()
    assert lm.xz_bits_per_byte(text, text[1000:3000]) < 0.5 < 7.9 < lm.xz_bits_per_byte(text[:2500], text[2500:])


def test_ngrams_are_counted_and_backed_off_as_the_equation_says():
    p_a = (2 + 2 / 256) / (3 + 2)  # of "aab": N = 3, T = 2
    p_b = (1 + 2 / 256) / (3 + 2)
    assert lm.ngram_bits_per_byte(b"aab", b"a", 0) == pytest.approx(-np.log2(p_a))
    p_b_after_a = (1 + 2 * p_b) / (2 + 2)  # after a: a, b
    p_a_after_zero = (1 + p_a) / (1 + 1)  # zeros are before the text
    expected = -np.mean(np.log2([p_a_after_zero, p_b_after_a]))
    assert lm.ngram_bits_per_byte(b"aab", b"ab", 1) == pytest.approx(expected)
    p_a_after_b = p_a  # never seen: as without a context
    expected = -np.mean(np.log2([p_a_after_zero, p_b_after_a, p_a_after_b]))
    assert lm.ngram_bits_per_byte(b"aab", b"aba", 1) == pytest.approx(expected)


def test_the_probabilities_of_ngrams_sum_to_one():
    text = b"abracadabra, abracadabra"
    total = sum(2 ** -(2 * lm.ngram_bits_per_byte(text, bytes([97, c]), 3)) for c in range(256))
    assert total == pytest.approx(2 ** -lm.ngram_bits_per_byte(text, b"a", 3))
