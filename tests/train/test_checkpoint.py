import jax
import optax
import pytest

from fbp import nn, train
from tests.train.problem import OPTIMIZER, assert_same_bits, loss_fn, numbers, points, start


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = train.Checkpoints(tmp_path / "checkpoints")
    yield checkpoints
    checkpoints.close()


STEP = train.make_train_step(loss_fn, OPTIMIZER)


def trained(steps):
    state = start()
    for _ in range(steps):
        state, _ = STEP(state, points())
    return state


def test_restore_gives_the_same_bits(checkpoints):
    state = trained(2)
    checkpoints.save(state)
    restored = checkpoints.restore(start(seed=1))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert_same_bits(restored, state)
    assert jax.random.key_impl(restored.rng) == jax.random.key_impl(state.rng)


def test_running_statistics_are_restored(checkpoints):
    state = start(nn.sequential(nn.dense(4), nn.batch_norm(), nn.dense(2)))
    state = state._replace(model_state=jax.tree.map(lambda x: x + 0.1, state.model_state))
    checkpoints.save(state)
    assert_same_bits(
        checkpoints.restore(jax.tree.map(lambda x: x * 0, state._replace(rng=0))._replace(rng=state.rng)), state
    )


def test_a_restored_state_can_be_trained_on(checkpoints):
    state = trained(1)
    checkpoints.save(state)
    restored, _ = STEP(checkpoints.restore(start(seed=1)), points())
    assert_same_bits(restored, STEP(state, points())[0])


def test_params_may_be_kept_in_bfloat16(checkpoints):
    state = start()._replace(params=train.BFLOAT16.to_compute(start().params))
    checkpoints.save(state)
    assert_same_bits(checkpoints.restore(jax.tree.map(lambda x: x, state)), state)


def test_the_newest_is_restored_and_the_last_two_are_kept(checkpoints):
    state = start()
    assert checkpoints.latest() is None
    for _ in range(4):
        state, _ = STEP(state, points())
        checkpoints.save(state)
    assert checkpoints.latest() == 4
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["3", "4"]
    assert_same_bits(checkpoints.restore(start()), state)


def test_a_step_is_written_once(checkpoints):
    checkpoints.save(start())
    checkpoints.save(start(seed=1))
    assert_same_bits(checkpoints.restore(start()), start())


def test_another_process_finds_them_by_the_folder(checkpoints):
    checkpoints.save(trained(1))
    again = train.Checkpoints(str(checkpoints.folder))
    assert again.latest() == 1
    assert numbers(again.restore(start())).keys() == numbers(start()).keys()
    again.close()


def test_without_a_checkpoint_there_is_nothing_to_restore(checkpoints):
    with pytest.raises(FileNotFoundError, match=f"there is no checkpoint in {checkpoints.folder}"):
        checkpoints.restore(start())


@pytest.mark.parametrize(
    "like, difference",
    [
        (lambda: start(nn.mlp((9, 2))), r"mu/dense_0/kernel is float32\[3, 8\], not float32\[3, 9\]; .*; and 4 more"),
        (lambda: start(nn.mlp((2,))), "opt_state/0/mu/dense_1/bias is not expected"),
        (lambda: start(nn.mlp((8, 2, 2))), "opt_state/0/mu/dense_2/bias is missing"),
        (lambda: start(optimizer=optax.sgd(1e-2)), "opt_state/0/mu/dense_0/bias is not expected"),
        (
            lambda: start()._replace(params=train.BFLOAT16.to_compute(start().params)),
            r"params/dense_0/bias is float32\[8\], not bfloat16\[8\]",
        ),
        (lambda: start()._replace(rng=jax.random.key(0, impl="rbg")), r"rng is uint32\[2\], not uint32\[4\]\. Resume"),
    ],
    ids=["shape", "fewer", "more", "optimizer", "dtype", "rng"],
)
def test_a_checkpoint_of_another_model_is_refused(checkpoints, like, difference):
    checkpoints.save(start())
    with pytest.raises(train.CheckpointMismatch, match=f"checkpoint of step 0 in .* another model .*: .*{difference}"):
        checkpoints.restore(like())
