import itertools
import json
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from fbp import train
from tests.train.problem import OPTIMIZER, assert_same_bits, loss_fn, points, start

STEPS = 10
STEP = train.make_train_step(loss_fn, OPTIMIZER)


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background, in which a shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(tmp_path):
    """Trains in a named folder, from its newest checkpoint if it has one, and gives the state and the metrics file."""
    opened = []

    def run(name, transform=None, step=STEP, steps=STEPS, seed=0, **options):
        folder = tmp_path / name
        checkpoints = train.Checkpoints(folder / "checkpoints")
        opened.append(checkpoints)
        state = start() if checkpoints.latest() is None else checkpoints.restore(start(seed=9))
        options = {"checkpoints": checkpoints, "evaluate": accuracy, "log_every": 2} | options
        batches = train.Batches(points(), 4, seed, transform)
        metrics_file = folder / "metrics.jsonl"
        return train.fit(state, step, batches, steps, metrics_file=metrics_file, **options), metrics_file

    yield run
    for checkpoints in opened:
        checkpoints.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The last state and the metrics of a run in one piece."""
    metrics_file = tmp_path_factory.mktemp("whole") / "metrics.jsonl"
    batches = train.Batches(points(), 4, 0)
    state = train.fit(start(), STEP, batches, STEPS, metrics_file=metrics_file, evaluate=accuracy, log_every=2)
    return state, metrics_file.read_bytes()


def assert_same_run(run, whole):
    (state, metrics_file), (whole_state, metrics) = run, whole
    assert_same_bits(state, whole_state)
    assert metrics_file.read_bytes() == metrics


def accuracy(state):
    return {"test_accuracy": jnp.sum(state.params["dense_0"]["kernel"])}


def raises_at(step, error=KeyboardInterrupt):
    calls = itertools.count(1)

    def transform(batch, rng):
        if next(calls) == step:
            raise error
        return batch

    return transform


def records(metrics_file):
    return [json.loads(line) for line in metrics_file.read_text().splitlines()]


def test_the_metrics_are_those_of_logged_steps_and_ends_of_epochs(run):
    state, metrics_file = run("a")
    found = [(r["step"], r.get("epoch"), sorted({*r} - {"step", "epoch"})) for r in records(metrics_file)]
    logged, tested = ["grad_norm", "largest", "loss"], ["test_accuracy"]
    assert found == [
        (2, None, logged), (4, None, logged), (4, 1, tested), (6, None, logged), (8, None, logged), (8, 2, tested),
        (10, None, logged), (10, 2, tested),
    ]  # fmt: skip
    assert int(state.step) == STEPS
    assert records(metrics_file)[-1]["test_accuracy"] == float(accuracy(state)["test_accuracy"])


def test_the_loss_falls(run):
    losses = [r["loss"] for r in records(run("a", steps=60)[1]) if "loss" in r]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def test_the_state_is_that_of_a_plain_loop(run):
    state = start()
    for batch in itertools.islice(train.Batches(points(), 4, 0).from_step(0), STEPS):
        state, _ = STEP(state, batch)
    assert_same_bits(run("a", checkpoints=None, evaluate=None)[0], state)


@pytest.mark.parametrize("stop", [1, 4, 6, 9])
def test_a_run_stopped_and_resumed_is_that_of_one_piece(run, stop, whole):
    with pytest.raises(RuntimeError, match="power cut"):
        run("stopped", raises_at(stop, RuntimeError("power cut")))
    assert_same_run(run("stopped"), whole)


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(run, stop, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run("stopped", raises_at(stop))
    left = train.Checkpoints(tmp_path / "stopped" / "checkpoints")
    assert left.latest() == stop - 1
    left.close()
    assert_same_run(run("stopped"), whole)


@pytest.mark.parametrize("within", ["step", "evaluation"])
def test_ctrl_c_waits_for_the_end_of_the_step(run, within, whole, tmp_path):

    def interrupted(fun, at):
        calls = itertools.count(1)

        def wrapped(*args):
            result = fun(*args)
            if next(calls) == at:
                signal.raise_signal(signal.SIGINT)
            return result

        return wrapped

    options = {"step": interrupted(STEP, 3)} if within == "step" else {"evaluate": interrupted(accuracy, 1)}
    with pytest.raises(KeyboardInterrupt):
        run("stopped", **options)
    left = train.Checkpoints(tmp_path / "stopped" / "checkpoints")
    assert left.latest() == (3 if within == "step" else 4)
    left.close()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same_run(run("stopped"), whole)


def test_a_second_ctrl_c_does_not_wait(run, tmp_path):
    def step(state, batch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("still running")

    with pytest.raises(KeyboardInterrupt):
        run("stopped", step=step)
    assert not list((tmp_path / "stopped" / "checkpoints").iterdir())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_finished_run_has_nothing_left_to_do(run):
    state, metrics_file = run("a")
    before = metrics_file.read_bytes()
    assert_same_bits(run("a", raises_at(1))[0], state)
    assert metrics_file.read_bytes() == before


def test_half_a_line_is_dropped(run):
    _, metrics_file = run("a")
    before = metrics_file.read_text()
    metrics_file.write_text(before + '{"step": 10, "lo')
    run("a")
    assert metrics_file.read_text() == before


def test_lines_of_steps_to_be_taken_again_are_dropped(run, tmp_path):
    with pytest.raises(RuntimeError):
        run("stopped", raises_at(8, RuntimeError))
    metrics_file = tmp_path / "stopped" / "metrics.jsonl"
    assert records(metrics_file)[-1]["step"] == 6
    run("stopped", steps=5)
    assert [r["step"] for r in records(metrics_file)] == [2, 4, 4, 5, 5]


@pytest.mark.parametrize("log_every, named", [(1, 6), (4, 8), (100, 8)])
def test_a_loss_that_is_not_finite_is_an_error_and_not_kept(run, log_every, named, tmp_path):
    calls = itertools.count(1)
    transform = lambda batch, rng: batch | {"x": batch["x"] * np.float32("nan" if next(calls) >= 6 else 1)}
    with pytest.raises(
        FloatingPointError,
        match=rf"the loss is nan at step {named}, .* dense_1/bias.*\. Lower the learning",
    ):
        run("a", transform, log_every=log_every)
    left = train.Checkpoints(tmp_path / "a" / "checkpoints")
    assert left.latest() == 4
    assert all(np.isfinite(x).all() for x in left.restore(start()).params["dense_0"].values())
    left.close()


def test_a_gradient_that_is_not_finite_is_an_error_and_not_kept(tmp_path):
    """sqrt has no derivative at 0: the loss is finite there, its gradient is not."""

    def loss(params, model_state, batch, rng):
        return jnp.sum(jnp.sqrt(params["dense_0"]["bias"] * 0)), (model_state, {})

    checkpoints = train.Checkpoints(tmp_path / "checkpoints")
    step, batches = train.make_train_step(loss, OPTIMIZER), train.Batches(points(), 16, 0)
    with pytest.raises(
        FloatingPointError, match=r"the loss is 0\.0 at step 1, and the gradient is not finite in dense_0/bias"
    ):
        train.fit(start(), step, batches, 8, metrics_file=tmp_path / "metrics.jsonl", checkpoints=checkpoints)
    assert checkpoints.latest() is None
    checkpoints.close()


def test_evaluate_fills_up_the_last_batch_and_cuts_it():
    shapes = []

    def predict(state, x):
        shapes.append(x.shape)
        return x.sum(1) + state

    xs = np.arange(14.0).reshape(7, 2)
    np.testing.assert_array_equal(train.evaluate(predict, 1.0, xs, batch_size=3), xs.sum(1) + 1)
    assert shapes == [(3, 2)] * 3
