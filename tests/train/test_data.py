import itertools

import numpy as np
import pytest

from fbp.train import Batches

DATA = {"x": np.arange(10), "y": np.arange(10) * 2}


def take(batches, count, start=0):
    return [batch["x"].tolist() for batch in itertools.islice(batches.from_step(start), count)]


def test_an_epoch_takes_each_example_at_most_once():
    batches = Batches(DATA, 3, seed=0)
    assert batches.steps_per_epoch == 3
    epoch = np.ravel(take(batches, 3))
    assert len({*epoch}) == 9 and {*epoch} < {*range(10)}


def test_rows_of_the_arrays_stay_together():
    for batch in itertools.islice(Batches(DATA, 4, seed=0).from_step(0), 5):
        assert (batch["y"] == 2 * batch["x"]).all()


def test_the_order_depends_on_seed_and_epoch_alone():
    assert take(Batches(DATA, 5, seed=0), 6) == take(Batches(DATA, 5, seed=0), 6)
    assert take(Batches(DATA, 5, seed=0), 2) != take(Batches(DATA, 5, seed=1), 2)
    assert take(Batches(DATA, 5, seed=0), 2) != take(Batches(DATA, 5, seed=0), 2, start=2)


@pytest.mark.parametrize("start", [1, 3, 4, 7])
def test_from_step_goes_on_exactly(start):
    noisy = lambda batch, rng: {"x": batch["x"] + rng.random(len(batch["x"]))}
    for batches in Batches(DATA, 3, seed=5), Batches(DATA, 3, seed=5, transform=noisy):
        assert take(batches, 5, start) == take(batches, 5 + start)[start:]


def test_augmentation_is_independent_of_the_order():
    batches = Batches(DATA, 5, seed=3, transform=lambda batch, rng: {"x": rng.permutation(10)})
    order = np.random.default_rng((3, 0)).permutation(10).tolist()
    assert order not in take(batches, 4)


@pytest.mark.parametrize(
    "data, batch_size, error",
    [
        (DATA, 11, "batch_size=11 is larger than the data set of 10 examples"),
        (DATA, 0, "batch_size=0 is not a positive number"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, 2, r"one length, but these have \[3, 4\]"),
    ],
)
def test_what_gives_no_batch_is_refused(data, batch_size, error):
    with pytest.raises(ValueError, match=error):
        next(Batches(data, batch_size, seed=0).from_step(0))
