"""Recurrent layers: a cell maps (state, input) to the next state, and `rnn` runs it over time.

Gates, parameter names and shapes are those of `flax.linen`; `i*` multiply the input, `h*` the hidden state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike

from fbp import ops
from fbp.nn.layer import Layer, widest
from fbp.nn.linear import dense


class Cell(NamedTuple):
    """One step of a recurrent net.

    `init(rng, x) -> params`; `initialize_carry(params, x) -> carry`, zeros for a batch like x: [batch, inputs], in the
    dtype that is computed in; `apply(params, carry, x) -> (carry, y)`.
    `over_time(params, carry, xs, reverse, unroll) -> (carry, ys)` is all steps of xs: [time, batch, inputs] as one operation
    (see `fbp.ops.recurrent`), where there is one; without it, `apply` is run step by step.
    """

    name: str
    init: Callable[..., Any]
    initialize_carry: Callable[..., Any]
    apply: Callable[..., tuple[Any, jax.Array]]
    over_time: Callable[..., tuple[Any, jax.Array]] | None = None


class _Gates:
    """The linear maps of a cell, by name: those in `inputs` of x, those in `hidden` of h."""

    def __init__(
        self, features, inputs, hidden, biased, dtype, param_dtype, kernel_init, recurrent_kernel_init, bias_init
    ):
        def layer(name, init):
            return dense(features, name in biased, dtype, param_dtype, init, bias_init)

        self.features, self.dtype = features, dtype
        self.of_x = {name: layer(name, kernel_init) for name in inputs}
        self.of_h = {name: layer(name, recurrent_kernel_init) for name in hidden}

    def init(self, rng, x):
        h = jax.ShapeDtypeStruct((*x.shape[:-1], self.features), x.dtype)
        layers = [(name, layer, x) for name, layer in self.of_x.items()]
        layers += [(name, layer, h) for name, layer in self.of_h.items()]
        rngs = jax.random.split(rng, len(layers))
        return {name: layer.init(r, z)[0] for (name, layer, z), r in zip(layers, rngs, strict=True)}

    def zeros(self, params, x):
        return jnp.zeros((*x.shape[:-1], self.features), self.dtype or widest(x, params))

    def joined(self, params, x, *names):
        """The kernels, or biases, of gates ("ii/kernel") next to each other, in the dtype that is computed in."""
        dtype = self.dtype or widest(x, params)
        parts = [params[gate][kind] for gate, kind in (name.split("/") for name in names)]
        return jnp.concatenate([p.astype(dtype) for p in parts], -1)

    def over_time(self, operation, *names):
        """`operation(x, *parameters, carry)` as the `over_time` of a cell, of the parameters that are `joined`."""

        def run(params, carry, xs, reverse, unroll):
            xs = xs.astype(self.dtype or widest(xs, params))
            parameters = [self.joined(params, xs, *group) for group in names]
            return operation(xs, *parameters, carry, reverse=reverse, unroll=unroll)

        return run

    def __call__(self, name, params, z):
        layer = self.of_x.get(name) or self.of_h[name]
        return layer.apply(params[name], {}, z)[0]


def simple_cell(
    features: int,
    activation_fn: Callable[[jax.Array], jax.Array] = jnp.tanh,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    kernel_init: initializers.Initializer = initializers.lecun_normal(),
    recurrent_kernel_init: initializers.Initializer = initializers.orthogonal(),
    bias_init: initializers.Initializer = initializers.zeros,
) -> Cell:
    """h' = tanh(W_i x + b + W_h h) (Elman 1990). x: [batch, inputs], h: [batch, features]."""
    options = dtype, param_dtype, kernel_init, recurrent_kernel_init, bias_init
    gate = _Gates(features, ["i"], ["h"], {"i"}, *options)

    def apply(params, h, x):
        h = activation_fn(gate("i", params, x) + gate("h", params, h))
        return h, h

    over_time = gate.over_time(ops.elman, ["i/kernel"], ["h/kernel"], ["i/bias"])
    return Cell("simple_cell", gate.init, gate.zeros, apply, over_time if activation_fn is jnp.tanh else None)


def lstm_cell(
    features: int,
    gate_fn: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid,
    activation_fn: Callable[[jax.Array], jax.Array] = jnp.tanh,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    kernel_init: initializers.Initializer = initializers.lecun_normal(),
    recurrent_kernel_init: initializers.Initializer = initializers.orthogonal(),
    bias_init: initializers.Initializer = initializers.zeros,
) -> Cell:
    """i, f, o = σ(W x + U h + b), g = tanh(W x + U h + b); c' = f c + i g; h' = o tanh c' (Gers et al. 2000).

    The carry is (c, h), each [batch, features].
    """
    options = dtype, param_dtype, kernel_init, recurrent_kernel_init, bias_init
    gate = _Gates(features, ["ii", "if", "ig", "io"], ["hi", "hf", "hg", "ho"], {"hi", "hf", "hg", "ho"}, *options)

    def apply(params, carry, x):
        c, h = carry
        i, f, g, o = (gate(f"i{k}", params, x) + gate(f"h{k}", params, h) for k in "ifgo")
        c = gate_fn(f) * c + gate_fn(i) * activation_fn(g)
        h = gate_fn(o) * activation_fn(c)
        return (c, h), h

    over_time = gate.over_time(
        ops.lstm, *([name % k for k in "ifgo"] for name in ("i%s/kernel", "h%s/kernel", "h%s/bias"))
    )
    is_standard = gate_fn is jax.nn.sigmoid and activation_fn is jnp.tanh
    zeros = lambda params, x: (gate.zeros(params, x), gate.zeros(params, x))
    return Cell("lstm_cell", gate.init, zeros, apply, over_time if is_standard else None)


def gru_cell(
    features: int,
    gate_fn: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid,
    activation_fn: Callable[[jax.Array], jax.Array] = jnp.tanh,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    kernel_init: initializers.Initializer = initializers.lecun_normal(),
    recurrent_kernel_init: initializers.Initializer = initializers.orthogonal(),
    bias_init: initializers.Initializer = initializers.zeros,
) -> Cell:
    """r, z = σ(W x + b + U h); n = tanh(W x + b + r (U h + b')); h' = (1 - z) n + z h (Cho et al. 2014)."""
    options = dtype, param_dtype, kernel_init, recurrent_kernel_init, bias_init
    gate = _Gates(features, ["ir", "iz", "in"], ["hr", "hz", "hn"], {"ir", "iz", "in", "hn"}, *options)

    def apply(params, h, x):
        r = gate_fn(gate("ir", params, x) + gate("hr", params, h))
        z = gate_fn(gate("iz", params, x) + gate("hz", params, h))
        n = activation_fn(gate("in", params, x) + r * gate("hn", params, h))
        h = (1 - z) * n + z * h
        return h, h

    names = [[name % k for k in "rzn"] for name in ("i%s/kernel", "h%s/kernel", "i%s/bias")]
    over_time = gate.over_time(ops.gru, *names, ["hn/bias"])
    is_standard = gate_fn is jax.nn.sigmoid and activation_fn is jnp.tanh
    return Cell("gru_cell", gate.init, gate.zeros, apply, over_time if is_standard else None)


def rnn(
    cell: Cell,
    time_major: bool = False,
    return_carry: bool = False,
    reverse: bool = False,
    keep_order: bool = False,
    unroll: int = 1,
) -> Layer:
    """Runs a cell over time from a carry of zeros; as `flax.linen.RNN`. x: [batch, time, inputs], y: [batch, time, features].

    time_major: x and y are [time, batch, ...]. return_carry: gives (carry, y). reverse: runs from the last step to the
    first, and y is in the order of the run, unless `keep_order` puts it back in the order of time. unroll: steps per
    iteration of the compiled loop.

    >>> layer = rnn(lstm_cell(4))
    >>> params, state = layer.init(jax.random.key(0), jnp.ones((2, 7, 3)))
    >>> layer.apply(params, state, jnp.ones((2, 7, 3)))[0].shape
    (2, 7, 4)
    """
    time = 0 if time_major else 1

    def first(x):
        """One step of x, or its type."""
        return jax.eval_shape(lambda x: jnp.take(x, 0, time), x)

    def init(rng, x):
        return {"cell": cell.init(rng, first(x))}, {}

    def apply(params, state, x, *, train=False, rng=None):
        carry, xs = cell.initialize_carry(params["cell"], first(x)), jnp.moveaxis(x, time, 0)
        if cell.over_time is not None:
            carry, ys = cell.over_time(params["cell"], carry, xs, reverse, unroll)
        else:
            step = lambda carry, x: cell.apply(params["cell"], carry, x)
            carry, ys = lax.scan(step, carry, xs, reverse=reverse, unroll=unroll)
        ys = ys[::-1] if reverse and not keep_order else ys
        ys = jnp.moveaxis(ys, 0, time)
        return ((carry, ys) if return_carry else ys), state

    return Layer("rnn", init, apply)
