"""Diffrax: differential equations solved, and differentiated through the solver by every adjoint that it offers."""

import diffrax
import jax
import jax.numpy as jnp
import lineax
import optimistix

from tests.programs.agree import Program, check, normal, one_test_each


def field(t, y, args):
    """A small neural vector field, with a decay."""
    w, rate = args
    return jnp.tanh(w @ y + t) - rate * y


def solve(solver, adjoint, adaptive=True):
    def fun(y0, w, rate):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            solver,
            t0=0.0,
            t1=1.0,
            dt0=0.1,
            y0=y0,
            args=(w, rate),
            saveat=diffrax.SaveAt(ts=jnp.array([0.3, 1.0], y0.dtype)),
            stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-6) if adaptive else diffrax.ConstantStepSize(),
            adjoint=adjoint,
            max_steps=64,
        ).ys

    return fun


def stochastic(y0, w, rate):
    noise = diffrax.VirtualBrownianTree(0.0, 1.0, tol=1e-2, shape=(3,), key=jax.random.key(1))
    diffusion = diffrax.ControlTerm(lambda t, y, args: 0.1 * jnp.diag(jnp.cos(y)), noise)
    terms = diffrax.MultiTerm(diffrax.ODETerm(field), diffusion)
    return diffrax.diffeqsolve(terms, diffrax.Euler(), 0.0, 1.0, 0.1, y0, (w, rate)).ys


def linear(a, b):
    return lineax.linear_solve(lineax.MatrixLinearOperator(a), b, lineax.LU()).value


def conjugate_gradients(a, b):
    operator = lineax.MatrixLinearOperator(a @ a.T + jnp.eye(3, dtype=a.dtype), lineax.positive_semidefinite_tag)
    return lineax.linear_solve(operator, b, lineax.CG(rtol=1e-12, atol=1e-12, max_steps=100)).value


def root(a, b):
    """Implicit differentiation: x = tanh(a x) + b."""
    solver = optimistix.Newton(rtol=1e-10, atol=1e-10)
    return optimistix.root_find(lambda x, ab: x - jnp.tanh(ab[0] @ x) - ab[1], solver, b, (a, b), max_steps=64).value


def least_squares(a, b):
    solver = optimistix.LevenbergMarquardt(rtol=1e-10, atol=1e-10)
    residual = lambda x, ab: jnp.concatenate([ab[0] @ x - jnp.sin(ab[1]), 0.5 * x])
    return optimistix.least_squares(residual, solver, b, (a, b), max_steps=128).value


ARGS = (normal(3), normal(3, 3, seed=1), jnp.float32(0.5))
MATRIX = normal(3, 3, seed=2) + 4 * jnp.eye(3)

PROGRAMS = [
    Program("Tsit5, recursive checkpointing", solve(diffrax.Tsit5(), diffrax.RecursiveCheckpointAdjoint()), ARGS),
    Program("Dopri5, direct", solve(diffrax.Dopri5(), diffrax.DirectAdjoint()), ARGS),
    Program("Tsit5, backsolve", solve(diffrax.Tsit5(), diffrax.BacksolveAdjoint()), ARGS),
    Program("Kvaerno3, an implicit solver", solve(diffrax.Kvaerno3(), diffrax.RecursiveCheckpointAdjoint()), ARGS),
    Program("Heun, fixed steps", solve(diffrax.Heun(), diffrax.RecursiveCheckpointAdjoint(), adaptive=False), ARGS),
    Program("a stochastic equation", stochastic, ARGS),
    Program("lineax, LU", linear, (MATRIX, normal(3))),
    Program("lineax, conjugate gradients", conjugate_gradients, (MATRIX, normal(3))),
    Program("optimistix, a root", root, (normal(3, 3, seed=1) / 4, normal(3))),
    Program("optimistix, least squares", least_squares, (MATRIX, normal(3))),
]


@one_test_each(PROGRAMS)
def test_agrees_with_jax_grad(program):
    check(program)
