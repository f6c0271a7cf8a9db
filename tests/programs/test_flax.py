"""Every layer of flax.linen and flax.nnx."""

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax import nnx

from tests.programs.agree import Program, check, normal, one_test_each

X, IMAGE, SEQUENCE = normal(4, 6), normal(2, 6, 6, 4), normal(2, 5, 6)
TOKENS = jnp.array([[1, 2, 0], [3, 3, 1]])

LINEN = {
    "BatchNorm": (linen.BatchNorm(use_running_average=False), X),
    "BatchNorm running": (linen.BatchNorm(use_running_average=True), X),
    "Bidirectional": (
        linen.Bidirectional(
            linen.RNN(linen.GRUCell(3, param_dtype=float)), linen.RNN(linen.GRUCell(3, param_dtype=float))
        ),
        SEQUENCE,
    ),
    "Conv": (linen.Conv(3, (3, 3)), IMAGE),
    "Conv circular": (linen.Conv(3, (3, 3), padding="CIRCULAR"), IMAGE),
    "Conv dilated": (linen.Conv(3, (3, 3), kernel_dilation=2), IMAGE),
    "Conv grouped": (linen.Conv(4, (3, 3), strides=2, feature_group_count=2), IMAGE),
    "ConvLocal": (linen.ConvLocal(3, (2, 2), padding="VALID"), IMAGE),
    "ConvTranspose": (linen.ConvTranspose(3, (3, 3), (2, 2)), IMAGE),
    "Dense": (linen.Dense(3), X),
    "DenseGeneral": (linen.DenseGeneral((2, 3), axis=(-2, -1)), SEQUENCE),
    "Dropout": (linen.Dropout(0.3, deterministic=False), X),
    "Einsum": (linen.Einsum((6, 2, 3), "bti,ihd->bthd"), SEQUENCE),
    "Embed": (linen.Embed(5, 3), TOKENS),
    "GroupNorm": (linen.GroupNorm(2), IMAGE),
    "InstanceNorm": (linen.InstanceNorm(), IMAGE),
    "LayerNorm": (linen.LayerNorm(), X),
    "MultiHeadDotProductAttention": (linen.MultiHeadDotProductAttention(2, qkv_features=4), SEQUENCE),
    "PReLU": (linen.PReLU(), X),
    "RMSNorm": (linen.RMSNorm(), X),
    "RNN ConvLSTM": (linen.RNN(linen.ConvLSTMCell(3, (3,), param_dtype=float)), normal(2, 4, 5, 3)),
    "RNN GRU": (linen.RNN(linen.GRUCell(3, param_dtype=float)), SEQUENCE),
    "RNN LSTM": (linen.RNN(linen.LSTMCell(3, param_dtype=float)), SEQUENCE),
    "RNN MGU": (linen.RNN(linen.MGUCell(3, param_dtype=float)), SEQUENCE),
    "RNN OptimizedLSTM": (linen.RNN(linen.OptimizedLSTMCell(3, param_dtype=float), reverse=True), SEQUENCE),
    "RNN Simple": (linen.RNN(linen.SimpleCell(3, param_dtype=float)), SEQUENCE),
    "Sequential": (linen.Sequential([linen.Dense(3), linen.tanh, linen.Dense(2)]), X),
    "SpectralNorm": (linen.SpectralNorm(linen.Dense(3)), X),
    "WeightNorm": (linen.WeightNorm(linen.Dense(3)), X),
    "remat": (linen.remat(linen.Dense)(3), X),
}


class Scanned(linen.Module):
    """Three dense layers as one scan, `linen.scan`, of a checkpointed layer."""

    @linen.compact
    def __call__(self, x):
        layer = linen.scan(linen.remat(Step), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return layer()(x, None)[0]


class Step(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        return linen.tanh(linen.Dense(x.shape[-1])(x)), None


def pooled(x):
    return linen.max_pool(x, (2, 2), (2, 2)), linen.avg_pool(x, (3, 3), padding="SAME")


def of_linen(module, x):
    extra = {"update_stats": True} if isinstance(module, linen.SpectralNorm) else {}
    variables = module.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, jnp.asarray(x, jnp.float32)
                            if x.dtype != jnp.int32 else x, **extra)  # fmt: skip

    def fun(variables, x):
        y, _ = module.apply(variables, x, rngs={"dropout": jax.random.key(1)}, mutable=["batch_stats"], **extra)
        return y

    return fun, variables, x


RNGS = nnx.Rngs(0, dropout=1)
NNX = {
    "BatchNorm": (nnx.BatchNorm(6, rngs=RNGS), X),
    "Bidirectional": (
        nnx.Bidirectional(
            nnx.RNN(nnx.GRUCell(6, 3, param_dtype=float, rngs=RNGS)),
            nnx.RNN(nnx.GRUCell(6, 3, param_dtype=float, rngs=RNGS)),
            rngs=RNGS,
        ),
        SEQUENCE,
    ),
    "Conv": (nnx.Conv(4, 3, (3, 3), rngs=RNGS), IMAGE),
    "ConvTranspose": (nnx.ConvTranspose(4, 3, (3, 3), (2, 2), rngs=RNGS), IMAGE),
    "Dropout": (nnx.Dropout(0.3, rngs=RNGS), X),
    "Einsum": (nnx.Einsum("bti,ihd->bthd", (6, 2, 3), rngs=RNGS), SEQUENCE),
    "Embed": (nnx.Embed(5, 3, rngs=RNGS), TOKENS),
    "GroupNorm": (nnx.GroupNorm(4, 2, rngs=RNGS), IMAGE),
    "InstanceNorm": (nnx.InstanceNorm(4, rngs=RNGS), IMAGE),
    "LayerNorm": (nnx.LayerNorm(6, rngs=RNGS), X),
    "Linear": (nnx.Linear(6, 3, rngs=RNGS), X),
    "LinearGeneral": (nnx.LinearGeneral((5, 6), (2, 3), axis=(-2, -1), rngs=RNGS), SEQUENCE),
    "LoRA": (nnx.LoRA(6, 2, 3, rngs=RNGS), X),
    "PReLU": (nnx.PReLU(), X),
    "RMSNorm": (nnx.RMSNorm(6, rngs=RNGS), X),
    "RNN GRU": (nnx.RNN(nnx.GRUCell(6, 3, param_dtype=float, rngs=RNGS)), SEQUENCE),
    "RNN LSTM": (nnx.RNN(nnx.LSTMCell(6, 3, param_dtype=float, rngs=RNGS)), SEQUENCE),
    "RNN OptimizedLSTM": (nnx.RNN(nnx.OptimizedLSTMCell(6, 3, param_dtype=float, rngs=RNGS)), SEQUENCE),
    "RNN Simple": (nnx.RNN(nnx.SimpleCell(6, 3, dtype=float, param_dtype=float, rngs=RNGS)), SEQUENCE),
    "Sequential": (nnx.Sequential(nnx.Linear(6, 3, rngs=RNGS), nnx.relu, nnx.Linear(3, 2, rngs=RNGS)), X),
}


def of_nnx(module, x):
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def fun(params, x):
        state = jax.tree.map(lambda s: s.astype(x.dtype) if jnp.issubdtype(s.dtype, jnp.floating) else s, rest)
        return nnx.merge(graph, params, state, copy=True)(x)

    return fun, params, x


def attention():
    fun, *args = of_nnx(nnx.MultiHeadAttention(2, 6, 4, decode=False, use_bias=False, rngs=RNGS), SEQUENCE)
    return fun, tuple(args)


PROGRAMS = [
    *(Program(f"linen {name}", fun, args) for name, (m, x) in LINEN.items() for fun, *args in [of_linen(m, x)]),
    *(
        Program(f"linen {name}", fun, args)
        for name, m, x in [("scan", Scanned(), X)]
        for fun, *args in [of_linen(m, x)]
    ),
    Program("linen pooling", pooled, (IMAGE,)),
    Program("nnx MultiHeadAttention", *attention(), tolerance=1e-6),  # computes in float32
    *(Program(f"nnx {name}", fun, args) for name, (m, x) in NNX.items() for fun, *args in [of_nnx(m, x)]),
]


@one_test_each(PROGRAMS)
def test_agrees_with_jax_grad(program):
    check(program)
