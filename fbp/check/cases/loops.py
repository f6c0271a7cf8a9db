"""Cases for `fbp.rules.loops`."""

import jax
import jax.numpy as jnp
from jax import lax

from fbp.check.case import Case, integers, normal

WHX = (normal(3), normal(3), normal(4, 3))


def rnn(**options):
    def fun(w, h, xs):
        def step(h, x):
            h = jnp.tanh(w * h + x)
            return h, h * w

        return lax.scan(step, h, xs, **options)

    return fun


def mixed_carry(x):
    """An integer, a carry without a cotangent at first, and one that never gets any."""
    return lax.scan(lambda c, _: ((c[0] + 1, c[2], c[1] + x * x, c[3]), c[1]), (0, x * 0, x * 0 + 1, 2.0), length=3)


def branch(i, x, y):
    return lax.switch(i, [lambda x, y: jnp.tanh(x) * y, lambda x, y: x, lambda x, y: x * x * y * y], x, y)


def write_in_place(xs):
    """A loop that writes into an array it carries."""
    step = lambda i, ys: ys.at[i].set(ys[i - 1] * xs[i])
    return lax.fori_loop(1, 4, step, xs)


CASES = [
    Case("scan", rnn(), WHX, complex=True),
    Case("scan/reverse", rnn(reverse=True), WHX),
    Case("scan/unroll", rnn(unroll=2), WHX),
    Case("scan/nothing", rnn(), (normal(3), normal(3), normal(0, 3))),
    Case("scan/no inputs", lambda x: lax.scan(lambda h, _: (h * x, None), x, length=3)[0], (normal(3),)),
    Case("scan/mixed carry", mixed_carry, (normal(3),), low=False),
    Case("scan/nested", lambda w, h, xs: lax.scan(lambda h, x: (rnn()(w, h * x, xs)[0], None), h, xs)[0], WHX, ulps=16),
    Case("scan/vmapped", jax.vmap(rnn(), (None, 0, None)), (normal(3), normal(2, 3), normal(4, 3))),
    Case("scan/remat", lambda w, h, xs: lax.scan(jax.checkpoint(lambda h, x: (jnp.tanh(w * h + x), h)), h, xs), WHX),
    Case("scan/jit inside", lambda w, h, xs: lax.scan(jax.jit(lambda h, x: (jnp.sin(w * h) * x, h)), h, xs), WHX),
    Case("cond", lambda x, y: lax.cond(jnp.sum(x) > 0, jnp.multiply, lambda x, y: x, x, y), (normal(3), normal(3))),
    *[Case(f"switch/{i}", lambda x, y, i=i: branch(i, x, y), (normal(3), normal(3))) for i in range(3)],
    Case("switch/vmapped", jax.vmap(branch), (integers(0, 3, 5), normal(5), normal(5))),
    Case(
        "cond/in scan",
        lambda h, xs: lax.scan(lambda h, x: (lax.cond(x[0] > 0, jnp.sin, jnp.cos, h * x), h), h, xs),
        (normal(3), normal(4, 3)),
    ),
    Case("while/without gradient", lambda x: lax.while_loop(lambda i: i < 3, lambda i: i + 1, 0) * x, (normal(3),)),
    Case("fori_loop", lambda x: lax.fori_loop(0, 3, lambda i, h: jnp.sin(h) * x, x), (normal(3),)),
    Case("fori_loop/write in place", write_in_place, (normal(4),)),
    Case("associative_scan", lambda x: lax.associative_scan(jnp.multiply, x), (normal(5),)),
    Case("map", lambda x: lax.map(jnp.sin, x), (normal(3, 2),)),
]
