"""Training: a state, a jitted step, a loop that reports, and checkpoints that resume bit for bit."""

from fbp.train.checkpoint import CheckpointMismatch, Checkpoints
from fbp.train.data import Batches
from fbp.train.loop import evaluate, fit
from fbp.train.state import BFLOAT16, FLOAT32, Policy, TrainState, init_state
from fbp.train.step import layer_norms, make_train_step

__all__ = [
    "BFLOAT16",
    "FLOAT32",
    "Batches",
    "CheckpointMismatch",
    "Checkpoints",
    "Policy",
    "TrainState",
    "evaluate",
    "fit",
    "init_state",
    "layer_norms",
    "make_train_step",
]
