"""The gradient-correctness comparison suite: every rule and layer against `jax.grad`, and `check_grads` for your own."""

from fbp.check.compare import GradientMismatch, Row, Table, check_grads, ulps

__all__ = ["GradientMismatch", "Row", "Table", "check_grads", "ulps"]
