"""Convolutions. Along one axis, with the input x spread by its dilation, the kernel w by its own, the output y by the
stride:

    y_i = Σ_k w_k x_{i+k-low}   =>   x_bar_j = Σ_k w_k y_bar_{j-k+low},   w_bar_k = Σ_i y_bar_i x_{i+k-low}.

Both are convolutions again: of y_bar with w flipped, and of x with y_bar as the kernel. Strides of y become dilations of
y_bar and dilations of x become strides, and the padding is what makes the sizes come out.

So much for what is computed. For how, there is XLA's convolution, and for some kinds something faster; which is used where
is decided in `fbp.rules.choices`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from fbp.core import Rule
from fbp.rules import choices
from fbp.rules.common import explicit_sharding, swapped_precision, taps
from fbp.rules.shapes import unpad


class Convolution(NamedTuple):
    """A convolution before its values: the types of input and kernel, and the parameters of JAX's primitive."""

    x: Any
    w: Any
    window_strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    dimension_numbers: lax.ConvDimensionNumbers
    feature_group_count: int
    batch_group_count: int
    precision: Any
    preferred_element_type: Any
    out_sharding: Any = None

    @property
    def y(self) -> Any:
        return _output(self)

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        return tuple(self.w.shape[i] for i in self.dimension_numbers.rhs_spec[2:])

    @property
    def is_channels_last(self) -> bool:
        """Whether input and output are [batch, *space, features]; the kernel may be laid out in any way."""
        return self.dimension_numbers == self.channels_last().dimension_numbers

    def channels_last(self) -> Convolution:
        """The same convolution of such an input and output."""
        x_spec, w_spec, _ = self.dimension_numbers
        x = jax.core.ShapedArray(tuple(self.x.shape[i] for i in (x_spec[0], *x_spec[2:], x_spec[1])), self.x.dtype)
        spec = (0, x.ndim - 1, *range(1, x.ndim - 1))
        return self._replace(x=x, dimension_numbers=lax.ConvDimensionNumbers(spec, w_spec, spec))

    def of_one_group(self) -> Convolution:
        n, (x_spec, w_spec, _) = self.feature_group_count, self.dimension_numbers
        return self._replace(x=_divided(self.x, x_spec[1], n), w=_divided(self.w, w_spec[0], n), feature_group_count=1)


@functools.lru_cache(256)
def _output(conv: Convolution) -> Any:
    return jax.eval_shape(functools.partial(xla_forward, conv), conv.x, conv.w)


def _divided(aval, axis, n):
    shape = [size // n if i == axis else size for i, size in enumerate(aval.shape)]
    return jax.core.ShapedArray(tuple(shape), aval.dtype)


# ------------------------------------------------------------------------------------------ XLA's own, for every kind


def xla_forward(conv: Convolution, x, w):
    params = conv._asdict()
    del params["x"], params["w"]
    return lax.conv_general_dilated(x, w, **params)


def spread_size(n: int, dilation: int) -> int:
    return 0 if n == 0 else 1 + dilation * (n - 1)


def split_axis(x, axis, groups, to):
    """Takes the groups out of one axis and puts them, as the slower index, into another: [g·n, m] -> [n, g·m]."""
    shape = [*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :]]
    x = x.reshape(shape)
    order = [i for i in range(x.ndim) if i != axis]
    position = order.index(to if to < axis else to + 1)
    order.insert(position, axis)
    x = lax.transpose(x, order)
    shape = list(x.shape)
    shape[position : position + 2] = [shape[position] * shape[position + 1]]
    return x.reshape(shape)


def xla_input_bar(conv: Convolution, g, w):
    x_spec, w_spec, y_spec = conv.dimension_numbers
    x_spread, w_spread, y_spread = _spread_sizes(conv, g)
    low = [k - lo - 1 for k, (lo, _) in zip(w_spread, conv.padding, strict=True)]
    high = [n + k - 1 - m - lo for n, k, m, lo in zip(x_spread, w_spread, y_spread, low, strict=True)]
    groups = max(conv.feature_group_count, conv.batch_group_count)
    if groups > 1:
        w = split_axis(w, w_spec[0], groups, w_spec[1])
    x_bar = lax.conv_general_dilated(
        g,
        lax.rev(lax.convert_element_type(w, g.dtype), w_spec[2:]),  # y may have been asked for in a wider dtype
        window_strides=conv.lhs_dilation,
        padding=list(zip(low, high, strict=True)),
        lhs_dilation=conv.window_strides,
        rhs_dilation=conv.rhs_dilation,
        dimension_numbers=lax.ConvDimensionNumbers(y_spec, (w_spec[1], w_spec[0], *w_spec[2:]), x_spec),
        feature_group_count=groups,
        precision=conv.precision,
        preferred_element_type=conv.preferred_element_type,
        out_sharding=explicit_sharding(conv.x) if conv.batch_group_count == 1 else None,
    )
    return split_axis(x_bar, x_spec[1], groups, x_spec[0]) if conv.batch_group_count > 1 else x_bar


def xla_kernel_bar(conv: Convolution, g, x):
    x_spec, w_spec, y_spec = conv.dimension_numbers
    x_spread, w_spread, y_spread = _spread_sizes(conv, g)
    low = [lo for lo, _ in conv.padding]
    high = [k + m - n - lo - 1 for n, k, m, lo in zip(x_spread, w_spread, y_spread, low, strict=True)]
    # The batch is what is summed over, so it takes the place of the input features; the groups of one kind of axis
    # become groups of the other.
    feature_group_count, batch_group_count = conv.feature_group_count, conv.batch_group_count
    if batch_group_count > 1:
        feature_group_count, batch_group_count = batch_group_count, 1
    elif feature_group_count > 1:
        feature_group_count, batch_group_count = 1, feature_group_count
    return lax.conv_general_dilated(
        lax.convert_element_type(x, g.dtype),
        g,
        window_strides=conv.rhs_dilation,
        padding=list(zip(low, high, strict=True)),
        lhs_dilation=conv.lhs_dilation,
        rhs_dilation=conv.window_strides,
        dimension_numbers=lax.ConvDimensionNumbers(
            (x_spec[1], x_spec[0], *x_spec[2:]),
            (y_spec[1], y_spec[0], *y_spec[2:]),
            (w_spec[1], w_spec[0], *w_spec[2:]),
        ),
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=swapped_precision(conv.precision),
        preferred_element_type=conv.preferred_element_type,
        out_sharding=explicit_sharding(conv.w),
    )


def _spread_sizes(conv: Convolution, g):
    x_spec, w_spec, y_spec = conv.dimension_numbers
    kinds = (
        (conv.x, x_spec, conv.lhs_dilation),
        (conv.w, w_spec, conv.rhs_dilation),
        (g, y_spec, conv.window_strides),
    )
    return [
        [spread_size(a.shape[i], d) for i, d in zip(spec[2:], dilation, strict=True)] for a, spec, dilation in kinds
    ]


# ---------------------------------- XLA's own, of one row more, which is dropped: on all cores, where XLA would take but one


def taller_forward(conv: Convolution, x, w):
    (low, high), *others = conv.padding
    return xla_forward(conv._replace(padding=((low, high + 1), *others)), x, w)[:, :-1]


def taller_input_bar(conv: Convolution, g, w):
    """As if there were another row of x, where the padding begins."""
    (low, high), *others = conv.padding
    batch, rows, *rest = conv.x.shape
    x = jax.core.ShapedArray((batch, rows + 1, *rest), conv.x.dtype)
    return xla_input_bar(conv._replace(x=x, padding=((low, high - 1), *others)), g, w)[:, :-1]


# ----------------------------------------------- XLA's own, of one channel more, of zeros: where an odd number of them is slow


def even_forward(conv: Convolution, x, w):
    x_spec, w_spec, _ = conv.dimension_numbers
    return xla_forward(conv, _with_zeros(x, x_spec[1]), _with_zeros(w, w_spec[1]))


def even_input_bar(conv: Convolution, g, w):
    _, w_spec, y_spec = conv.dimension_numbers
    return xla_input_bar(conv, _with_zeros(g, y_spec[1]), _with_zeros(w, w_spec[0]))


def _with_zeros(x, axis):
    return lax.pad(x, lax.full((), 0, x.dtype), [(0, int(i == axis), 0) for i in range(x.ndim)])


# ------------------------------------------------------------------------------- in groups, one after the other in a loop


def grouped_forward(conv: Convolution, x, w):
    x_spec, w_spec, y_spec = conv.dimension_numbers
    one = conv.of_one_group()
    return _by_group(conv, [(x, x_spec[1]), (w, w_spec[0])], (conv.y, y_spec[1]), lambda x, w: xla_forward(one, x, w))


def grouped_input_bar(conv: Convolution, g, w):
    x_spec, w_spec, y_spec = conv.dimension_numbers
    one = conv.of_one_group()
    return _by_group(conv, [(g, y_spec[1]), (w, w_spec[0])], (conv.x, x_spec[1]), lambda g, w: xla_input_bar(one, g, w))


def grouped_kernel_bar(conv: Convolution, g, x):
    """w_bar_k = Σ_i x_{i+k} g_i: for each element of the kernel a product of matrices."""
    x_spec, w_spec, y_spec = conv.dimension_numbers
    one = conv.of_one_group()

    def of_one(g, x):
        over = list(range(g.ndim - 1))
        product = lambda window: lax.dot_general(window, g, ((over, over), ((), ())), precision=conv.precision)
        return _kernel(one, _of_each_tap(one, x, g, product))

    return _by_group(conv, [(g, y_spec[1]), (x, x_spec[1])], (conv.w, w_spec[0]), of_one)


def _by_group(conv: Convolution, operands: list[tuple[Any, int]], result: tuple[Any, int], of_one: Callable):
    """`of_one` of each group of the operands, cut along their axes; written side by side into the result, along its own."""
    n, (out, out_axis) = conv.feature_group_count, result

    def step(out, i):
        parts = [lax.dynamic_slice_in_dim(a, i * (m := a.shape[axis] // n), m, axis) for a, axis in operands]
        return lax.dynamic_update_slice_in_dim(out, of_one(*parts), i * (out.shape[out_axis] // n), out_axis), None

    start = lax.full_like(operands[0][0], 0, shape=out.shape)
    return lax.scan(step, start, jnp.arange(n))[0]


# ------------------------------------------------------------------------ pixel by pixel (1x1): a product of two matrices


def product_forward(conv: Convolution, x, w):
    return _product(conv, _strided(conv, x), _matrix(conv, w))


def product_input_bar(conv: Convolution, g, w):
    x_bar = _product(conv, g, _matrix(conv, w).T)
    ends = [
        (0, n - s * (m - 1) - 1, s - 1)
        for n, m, s in zip(conv.x.shape[1:-1], g.shape[1:-1], conv.window_strides, strict=True)
    ]
    return lax.pad(x_bar, lax.full((), 0, x_bar.dtype), [(0, 0, 0), *ends, (0, 0, 0)])


def product_kernel_bar(conv: Convolution, g, x):
    x = _strided(conv, x)
    over = list(range(x.ndim - 1))
    return _kernel(conv, lax.dot_general(x, g, ((over, over), ((), ())), precision=conv.precision))


def _product(conv: Convolution, x, matrix):
    return lax.dot_general(x, matrix, (((x.ndim - 1,), (0,)), ((), ())), precision=conv.precision)


def _strided(conv: Convolution, x):
    return lax.slice(x, (0,) * x.ndim, x.shape, (1, *conv.window_strides, 1))


def _matrix(conv: Convolution, w):
    """The kernel as [*its sizes, features in, features out], without its sizes where they are all 1."""
    out, into, *space = conv.dimension_numbers.rhs_spec
    w = lax.transpose(w, [*space, into, out])
    return w.reshape(w.shape[-2:]) if all(n == 1 for n in conv.kernel_sizes) else w


def _kernel(conv: Convolution, w):
    """The same back: [..., features in, features out] in the layout of the kernel."""
    out, into, *space = conv.dimension_numbers.rhs_spec
    w = w.reshape(*conv.kernel_sizes, *w.shape[-2:])
    order = [*space, into, out]
    return lax.transpose(w, [order.index(i) for i in range(len(order))])


# --------------------------------------------------- depthwise: each channel by itself, a sum over the elements of the kernel


def depthwise_forward(conv: Convolution, x, w):
    """y_i = Σ_k w_k x_{i+k}, one shifted product after the other, in one pass over the memory."""
    w = _of_channels(conv, w)
    x = lax.pad(_repeated(x, conv.y), lax.full((), 0, x.dtype), _padding_config(conv))
    found = (lax.slice(x, *places, _strides(conv)) for places in _taps(conv, conv.y.shape))
    parts = [window * w_k for window, w_k in zip(found, w, strict=True)]
    return sum(parts[1:], parts[0])


def depthwise_input_bar(conv: Convolution, g, w):
    """x_bar_j = Σ_k w_k g_{j-k}: the same again, of the cotangent, spread by the strides, with the kernel turned round."""
    w, config = _of_channels(conv, w), _padding_config(conv)
    sizes = [lo + spread_size(n, i + 1) + hi for n, (lo, hi, i) in zip(conv.x.shape, config, strict=True)]
    sizes[-1] = g.shape[-1]
    reach = [0, *((n - 1) * d for n, d in zip(conv.kernel_sizes, conv.rhs_dilation, strict=True)), 0]
    around = [
        (r, size - spread_size(n, s), s - 1)
        for r, size, n, s in zip(reach, sizes, g.shape, _strides(conv), strict=True)
    ]
    g = lax.pad(g, lax.full((), 0, g.dtype), around)
    parts = []
    for (places, _), w_k in zip(_taps(conv, conv.y.shape), w, strict=True):
        starts = [r - place for r, place in zip(reach, places, strict=True)]
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        parts.append(lax.slice(g, starts, ends) * w_k)
    x_bar = sum(parts[1:], parts[0])
    if g.shape[-1] != conv.x.shape[-1]:  # several channels out of each
        x_bar = x_bar.reshape(*x_bar.shape[:-1], conv.x.shape[-1], -1).sum(-1)
    return unpad(x_bar, config)


def depthwise_kernel_bar(conv: Convolution, g, x):
    """w_bar_k = Σ_i g_i x_{i+k}, image by image, whose products stay in the cache."""

    def of_one(_, image):
        g, x = (a[None] for a in image)
        ones = lax.full((g.size // g.shape[-1],), 1, g.dtype)
        return None, _of_each_tap(conv, _repeated(x, g), g, lambda window: ones @ (g * window).reshape(-1, g.shape[-1]))

    _, w_bars = lax.scan(of_one, None, (g, x))
    return _kernel(conv, jnp.sum(w_bars, 0)[:, None])


def _of_channels(conv: Convolution, w):
    """The kernel as [its elements, 1, ..., 1, channels out]: each to multiply what is [batch, *space, channels]."""
    return _matrix(conv, w).reshape(-1, *[1] * (conv.x.ndim - 1), conv.w.shape[conv.dimension_numbers.rhs_spec[0]])


def _of_each_tap(conv: Convolution, x, y, fun: Callable):
    """`fun` of what the outputs y find at each element of the kernel, in a loop, so that programs stay small."""
    x = lax.pad(x, lax.full((), 0, x.dtype), _padding_config(conv))
    starts, ends = (np.array(places) for places in zip(*_taps(conv, (*y.shape[:-1], x.shape[-1])), strict=True))
    sizes = ends[0] - starts[0]

    def of_one(_, start):
        window = lax.dynamic_slice(x, [start[i] for i in range(x.ndim)], sizes)
        return None, fun(lax.slice(window, (0,) * x.ndim, sizes, _strides(conv)))

    return lax.scan(of_one, None, jnp.asarray(starts, jnp.int32))[1]


def _repeated(x, y):
    """Each channel of x as often as there are channels of y made of it."""
    return x if x.shape[-1] == y.shape[-1] else jnp.repeat(x, y.shape[-1] // x.shape[-1], -1)


def _taps(conv: Convolution, y_shape):
    return taps((1, *conv.kernel_sizes, 1), (1, *conv.rhs_dilation, 1), _strides(conv), y_shape)


def _strides(conv: Convolution):
    return (1, *conv.window_strides, 1)


def _padding_config(conv: Convolution):
    inner = [(lo, hi, d - 1) for (lo, hi), d in zip(conv.padding, conv.lhs_dilation, strict=True)]
    return [(0, 0, 0), *inner, (0, 0, 0)]


# ------------------------------------------------------------- transposed: w_bar from the pixels of g that each pixel of x saw


def gathered_kernel_bar(conv: Convolution, g, x):
    """x_j meets g_i through w_k where i = j d - k + low: one product of x with the g of every k, side by side."""
    sizes = conv.kernel_sizes
    low = [lo for lo, _ in conv.padding]
    reach = [spread_size(n, d) for n, d in zip(x.shape[1:-1], conv.lhs_dilation, strict=True)]
    # g with room around it, so that every window lies inside: from -(k - 1 - low) to reach + low.
    before = [max(0, k - 1 - lo) for k, lo in zip(sizes, low, strict=True)]
    after = [max(0, r + lo - n) for r, lo, n in zip(reach, low, g.shape[1:-1], strict=True)]
    room = [(0, 0, 0), *((a, b, 0) for a, b in zip(before, after, strict=True)), (0, 0, 0)]
    g = lax.pad(g, lax.full((), 0, g.dtype), room)
    strides = (1, *conv.lhs_dilation, 1)
    seen = []
    for tap in itertools.product(*map(range, sizes)):
        starts = [b + lo - k for b, lo, k in zip(before, low, tap, strict=True)]
        ends = [a + r for a, r in zip(starts, reach, strict=True)]
        seen.append(lax.slice(g, (0, *starts, 0), (g.shape[0], *ends, g.shape[-1]), strides))
    over = list(range(x.ndim - 1))
    product = lax.dot_general(x, jnp.stack(seen, -2), ((over, over), ((), ())), precision=conv.precision)
    return _kernel(conv, jnp.moveaxis(product, 0, 1))


# ---------------------------------------------------------------------------------------------------------- the rule

FORWARD = {
    "xla": xla_forward, "grouped": grouped_forward, "product": product_forward, "depthwise": depthwise_forward,
    "taller": taller_forward, "even": even_forward,
}  # fmt: skip
INPUT_BAR = {
    "xla": xla_input_bar, "grouped": grouped_input_bar, "product": product_input_bar, "depthwise": depthwise_input_bar,
    "taller": taller_input_bar, "even": even_input_bar,
}  # fmt: skip
KERNEL_BAR = {
    "xla": xla_kernel_bar, "grouped": grouped_kernel_bar, "product": product_kernel_bar, "depthwise": depthwise_kernel_bar,
    "gathered": gathered_kernel_bar,
}  # fmt: skip


def _apply(part, name: str, conv: Convolution, first: tuple, second: tuple, result: int):
    """An algorithm, of operands that come with their place among (x, w, y); all but XLA's want channels last."""
    if name == "xla":
        return part[name](conv, first[0], second[0])
    specs = conv.dimension_numbers
    last = [(specs[i][0], *specs[i][2:], specs[i][1]) if i != 1 else range(conv.w.ndim) for i in range(3)]
    y = part[name](conv.channels_last(), *(lax.transpose(x, last[i]) for x, i in (first, second)))
    return lax.transpose(y, np.argsort(last[result]))


def convolution(choose: Callable[[str, Convolution], str] = choices.convolution) -> Rule:
    """The rule. `choose(part, conv)` names the algorithm of a part: "forward", "input_bar" or "kernel_bar".

    To force one: `RULES | {jax.lax.conv_general_dilated_p: convolution(lambda part, conv: "xla")}`."""

    def forward(site, x, w, **params):
        conv = Convolution(*site.avals, **params)
        y = _apply(FORWARD, choose("forward", conv), conv, (x, 0), (w, 1), 2)
        return y, (x if site.needs[1] else None, w if site.needs[0] else None)

    def backward(site, residuals, g, **params):
        if not g.size:  # a kernel that nowhere fits: XLA has no window of size 0
            return [None, None]
        conv, (x, w) = Convolution(*site.avals, **params), residuals
        x_bar = _apply(INPUT_BAR, choose("input_bar", conv), conv, (g, 2), (w, 1), 0) if site.needs[0] else None
        w_bar = _apply(KERNEL_BAR, choose("kernel_bar", conv), conv, (g, 2), (x, 0), 1) if site.needs[1] else None
        bars = zip((x_bar, w_bar), site.avals, strict=True)
        return [bar if bar is None else lax.convert_element_type(bar, aval.dtype) for bar, aval in bars]

    return Rule(forward, backward)


RULES = {p.conv_general_dilated_p: convolution()}
