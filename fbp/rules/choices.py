"""Which algorithm computes what: every choice that depends on the backend, on shapes or on dtypes, in one place.

A choice changes the speed of a result and its rounding, nothing else. The reasons are measurements: `scripts/bench` makes
them again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import primitives as p

from fbp import _compat
from fbp.core import elements

# What is run again in the backward pass if that takes fewer bytes than to keep what it gave (see `fbp.recompute`): a pass
# over the elements, which the compiler merges with the next. Memory 0.5 to 0.7 of what it is with everything kept in nets
# with normalization and in transformers, in about the same time; less of both where a loop stacks what is kept. Sums and
# products are not: they are long, or what they give is small. Nor are functions whose series are long (lgamma, erf_inv,
# powers), nor those that jump (==, sign, floor): what they read may be rounded otherwise when it is computed again. Nor
# slices, pads and concatenations, which put things elsewhere: merged with what reads them, they are computed for each place
# (with them an associative scan took three times as long, and a U-Net more memory).
CHEAP = frozenset({
    p.neg_p, p.add_p, p.sub_p, p.mul_p, p.div_p, p.abs_p, p.square_p, p.integer_pow_p, p.sqrt_p, p.rsqrt_p,
    p.exp_p, p.exp2_p, p.expm1_p, p.log_p, p.log1p_p, p.logistic_p, p.tanh_p, p.erf_p,
    p.max_p, p.min_p, p.clamp_p, p.select_n_p, p.stop_gradient_p,
    p.lt_p, p.le_p, p.gt_p, p.ge_p, p.and_p, p.or_p, p.not_p,  # but see `fbp.core.jumps`
    p.convert_element_type_p, p.copy_p, p.broadcast_in_dim_p, p.iota_p,
    p.reshape_p, p.squeeze_p, p.transpose_p, p.rev_p,
    p.jit_p, p.custom_jvp_call_p,  # as cheap as what is inside of them
    *_compat.where_known(dict.fromkeys(["split_p", "one_minus_square_p", "log2_p"])),
})  # fmt: skip

CACHE = 1 << 20  # bytes that one core finds again quickly
MAX_TAPS = 64  # a product for each element of the kernel: the program grows with their number


def convolution(part: str, conv: Any) -> str:
    """The algorithm of one part ("forward", "input_bar", "kernel_bar") of a convolution (see `fbp.rules.convolutions`)."""
    # Measured on CPUs, for which XLA compiles grouped and dilated convolutions into plain loops.
    if jax.default_backend() != "cpu":
        return "xla"
    # What is below adds up in the dtype of its inputs.
    if conv.x.dtype not in (jnp.float32, jnp.float64) or conv.preferred_element_type not in (None, conv.x.dtype):
        return "xla"
    if conv.out_sharding is not None or conv.batch_group_count > 1 or 0 in (*conv.x.shape, *conv.w.shape):
        return "xla"
    taps, is_spread = math.prod(conv.kernel_sizes), any(d > 1 for d in conv.lhs_dilation)
    if taps > MAX_TAPS:
        return "xla"
    if conv.feature_group_count > 1:
        if is_spread:
            return "xla"
        # Depthwise: 0.02 to 0.05 of XLA's time forward and for the input, 0.05 to 0.3 for the kernel.
        # In groups: 0.2 to 1 forward and for the input, 0.01 to 0.02 for the kernel.
        return "depthwise" if conv.feature_group_count == conv.channels_last().x.shape[-1] else "grouped"
    if not conv.is_channels_last:
        return "xla"
    # 1x1, one product of matrices: 0.6 to 0.9, and 0.3 to 0.5 for the kernel.
    if taps == 1 and not is_spread and all(pad == (0, 0) for pad in conv.padding):
        return "product"
    if part == "kernel_bar":
        # Transposed: 0.05 to 0.1. Of others, one product of x, shifted along one axis, and of g, shifted along the other, is 0.2
        # to 2 of XLA's time, by the machine, and takes 0.2 s more to compile.
        is_transposed = is_spread and all(d == 1 for d in (*conv.window_strides, *conv.rhs_dilation))
        return "gathered" if is_transposed else "xla"
    # Forward and for the input, by YNNPACK, which in jax 0.10 takes its time.
    if not _compat.CONVOLVES_ON_ONE_CORE or conv.x.dtype != jnp.float32 or is_spread or len(conv.kernel_sizes) != 2:
        return "xla"
    _, *space, inputs = conv.x.shape
    n, *pixels, outputs = conv.y.shape
    # From an odd number of features, as of an image's colours, to 17 to 32: with one more, of zeros, 0.1 to 0.5 of the time of
    # three, 0.4 to 0.8 of five to fifteen.
    read, made = (inputs, outputs) if part == "forward" else (outputs, inputs)
    is_same = pixels == space and all(s == 1 for s in conv.window_strides)
    if read % 2 and read > 1 and 16 < made <= 32 and (part == "forward" or is_same):
        return "even"
    # It has one core, unless the output is larger than the input: then Eigen convolves, on all cores. With one row more than
    # there is, 0.65 to 0.95 of the time, of all of a VGG-like net 0.8; of few features, few rows or little work, more. (With
    # jax 0.11 and 0.12 0.7 to 1.3, of whole nets 1.05.)
    batch = n if isinstance(n, int) else 0  # it may have no number yet
    work = batch * math.prod(pixels) * taps * inputs * outputs
    is_large = pixels[0] >= 8 and min(inputs, outputs) >= 32 and work > 1e8
    return "taller" if is_same and is_large else "xla"


def images_searched_at_a_time(
    x: Any, *, window_dimensions, window_strides, padding, base_dilation, window_dilation
) -> int:
    """In a loop over so many of the first axis of x the largest elements of windows are searched; 0 if all at once."""
    # On CPUs XLA merges the search, elementwise as it is, with the backward pass, and where windows overlap, makes it once for
    # each window that an element is in: a pool of 3 x 3 took 1.0 to 1.4 of JAX's time (select_and_scatter), and takes 0.1.
    if jax.default_backend() != "cpu" or not x.sharding.mesh.empty:
        return 0
    sizes = [d * (n - 1) + 1 for n, d in zip(window_dimensions, window_dilation, strict=True)]
    overlaps = any(size > stride for size, stride in zip(sizes, window_strides, strict=True))
    is_batch = (window_dimensions[0], window_strides[0], padding[0], base_dilation[0]) == (1, 1, (0, 0), 1)
    if not (overlaps and is_batch and isinstance(x.shape[0], int)):
        return 0
    image = math.prod(x.shape[1:]) * x.dtype.itemsize
    return min(max(1, CACHE // max(1, image)), x.shape[0] // 2)  # two steps at least: of one, XLA makes no loop


def takes_cotangent_first(g: Any, x: Any, w: Any, is_transposed: bool) -> bool:
    """Whether the cotangent of the right factor of y = x W, W_bar = xᵀ g, is computed the other way round, as gᵀ x.
    `is_transposed`: W has its axes in that order, the free ones before those contracted."""
    # Of what is larger than both, as the weights of attention, W_bar comes as W is laid out: 0.6 to 1 of the time and 0.8 of the
    # memory of attention at 512 positions, 0.94 and 0.87 of two layers with it, 0.95 to 1 of the time of transformers at 128.
    # (With jax 0.12 attention by itself takes up to 1.2 of the time, in 0.8 of the memory, and transformers 0.97.)
    if jax.default_backend() != "cpu" or elements(w) > 2 * max(elements(g), elements(x)):
        return is_transposed
    # Of weights, the left factor is copied into another order first and, element by element, what it is computed from again with
    # it: 0.85 to 0.9 of the time of transformers, whose gelu(x) is four times as wide as g.
    return elements(x) > elements(g)


def attention(group: int, queries: int, keys: int, features: int) -> tuple[tuple[int, int], int]:
    """Queries and keys of a block of scores, and key heads that are taken at a time."""
    if jax.default_backend() != "cpu":
        return (1024, 1024), 1 << 30  # a large device is filled by all heads at once
    # Products that two cores share: 0.6 to 1 of the time of blocks of 128 x 128, and 1 to 2.6 times their memory; of as many
    # heads as fill the caches, and one for two cores. (Of 1,024 and 4,096 positions, on two cores, one head at a time takes
    # 0.96 and 0.93 of the time of two, and 0.7 and 0.6 of the memory.) Blocks of 512 x 512 are no faster, and larger.
    sizes = _evenly(queries, 256), _evenly(keys, 512)
    scores, arrays = group * math.prod(sizes), (group * queries + keys) * features
    return sizes, max(1, (os.cpu_count() or 1) // 2, 4 * CACHE // max(1, 4 * scores + 16 * arrays))


def _evenly(n: int, most: int) -> int:
    """n in as few equal parts as are no larger than `most`: the size of one, or of a little more, so that it is a round one."""
    size = -(-n // max(1, -(-n // most)))
    return size if n <= most else -(-size // 16) * 16


AttentionImplementation = Literal["blocks", "xla", "cudnn"]


def attention_implementation(
    query: jax.Array, key: jax.Array, value: jax.Array, refused: Mapping[str, Sequence[str]]
) -> AttentionImplementation:
    """The implementation "cudnn", "xla" or "blocks": one that refuses none of the arguments."""
    if not refused["cudnn"] and is_for_cudnn(query, key, value):
        return "cudnn"
    # Of up to 128 keys the scores of all heads at once: within a transformer 0.85 of the time of blocks, less than half of the
    # time to compile, and the same memory, as what is elementwise is computed again. Of 256 keys blocks took 0.9 of the time and
    # a third of the memory of all at once.
    is_short = max(query.shape[1], key.shape[1]) <= 128
    return "xla" if is_short and not refused["xla"] and jax.default_backend() == "cpu" else "blocks"


def is_for_cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> bool:
    """Whether attention is cuDNN's kernel (Dao et al. 2022, for NVIDIA GPUs from Ampere on), which takes half precision."""
    if jax.default_backend() != "gpu" or query.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    capability = getattr(jax.devices()[0], "compute_capability", "0")  # AMD's is no number
    is_ampere = capability.replace(".", "").isdigit() and float(capability) >= 8
    features = query.shape[-1]
    same = query.dtype == key.dtype == value.dtype and value.shape[-1] == features
    return is_ampere and same and features % 8 == 0 and features <= 128 and min(query.shape[1], key.shape[1]) >= 64


def classes(examples: int) -> int:
    """Classes whose logits are made at a time: about 4 MiB of them, but enough for a product of matrices."""
    return max(256, (1 << 20) // max(1, examples))


def normalization(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """How much of the first axis of x the backward pass of a normalization over `axes` takes at a time."""
    # Rows by the cache-full: 0.5 to 0.8 of the time of all at once, and a third of it between two operations that XLA would
    # compute again in each of its passes over x. Forward, and with space among the axes, it is slower or no faster.
    if jax.default_backend() != "cpu" or axes != (1,) or len(shape) != 2:
        return max(1, shape[0])
    return max(1, CACHE // (4 * max(1, shape[1])))


def recurrent(cell: str) -> bool:
    """Whether a recurrent net ("elman", "lstm", "gru") is one operation with a rule of its own, or a scan with scan's."""
    # Against the scan of Flax's cell under jax.grad, 64 to 1,024 steps: LSTM 0.66 to 0.8 of the time, 0.6 to 0.95 of the memory;
    # GRU 0.64 to 0.71 and 0.7 to 1.1 (scan's rule 0.9 to 1.0 and 1.2). A step of an Elman net is one product, and its scan no
    # slower.
    return jax.default_backend() != "cpu" or cell != "elman"


def recurrent_steps(steps: int, size: int) -> int:
    """How many steps of a recurrent net are taken between the products of all of them; `size`: the bytes of one's δ."""
    # A cache-full: 0.81 to 0.85 of the time of all steps, and 0.7 of the memory, of 256 and 1,024 steps of an LSTM and a GRU. Of
    # 64, whose δ are 4 MiB, all at once are as fast or a little faster.
    if jax.default_backend() != "cpu" or steps * size <= 4 * CACHE:
        return max(1, steps)
    most = max(1, CACHE // size)
    return next((n for n in range(most, most // 2, -1) if steps % n == 0), most)  # none is left over, if that can be


def is_written_in_place(aval: Any) -> bool:
    """Whether it is worth an effort that a loop that carries such an array does not copy it in each step."""
    # Measured with rows of 256 numbers, 500 to 2,000 of them: 0.2 to 0.04 of the time. What a core finds in its nearest cache
    # is copied as soon as the branches are taken. Inside of a shard_map a branch would have to vary as its array does.
    if jax.default_backend() != "cpu" or not isinstance(aval, ShapedArray):
        return False
    return aval.sharding.mesh.empty and aval.size * aval.dtype.itemsize > 1 << 15
