"""Programs of many fields, as their users write them: graphs, state spaces, physics, probability, images, language. Only
`jax.grad` becomes `fbp.grad`. They are here to find what loses: no rule was written for one of them alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.drop_in import unmodified
from benchmarks.layers import normal
from benchmarks.measure import Program


def integers(high: int, *shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, high, shape))


def weights(*sizes: int, seed: int = 0) -> list[jax.Array]:
    """Of a multilayer perceptron with features in these numbers."""
    return [normal(m, n, scale=m**-0.5, seed=seed + i) for i, (m, n) in enumerate(itertools.pairwise(sizes))]


def perceptron(params: list[jax.Array], x: jax.Array, activation: Callable = jax.nn.relu) -> jax.Array:
    for w in params[:-1]:
        x = activation(x @ w)
    return x @ params[-1]


def mean_square(model: nn.Module, x: jax.Array, **rngs: jax.Array) -> Program:
    params = model.init({"params": jax.random.key(0), **rngs}, x)
    apply: Callable[..., Any] = model.apply
    return unmodified(lambda params, x: jnp.mean(apply(params, x, rngs=rngs) ** 2), params, (x,))


def runge_kutta(velocity: Callable[[jax.Array], jax.Array], x: jax.Array, h: float, steps: int) -> jax.Array:
    """x' = v(x) by the classical method of fourth order."""

    def step(x, _):
        k1 = velocity(x)
        k2 = velocity(x + h / 2 * k1)
        k3 = velocity(x + h / 2 * k2)
        k4 = velocity(x + h * k3)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    return lax.scan(step, x, None, length=steps)[0]


# Graphs and sets


def graph_convolution(nodes: int = 4096, edges: int = 32768, width: int = 64) -> Program:
    """x <- relu(x + Σ_j x_j W / 8), over the neighbours j (Kipf & Welling 2017)."""

    def loss(params, x, senders, receivers):
        for w in params:
            x = jax.nn.relu(x + jax.ops.segment_sum((x @ w)[senders], receivers, nodes) / 8)
        return jnp.mean(x**2)

    graph = integers(nodes, edges), integers(nodes, edges, seed=1)
    return unmodified(loss, weights(*[width] * 5), (normal(nodes, width), *graph))


def graph_attention(nodes: int = 2048, edges: int = 16384, heads: int = 4, width: int = 16) -> Program:
    """Softmax over the neighbours of a node (Veličković et al. 2018, eq. 3)."""

    def loss(params, x, senders, receivers):
        for w, a, b in params:
            z = (x @ w).reshape(nodes, heads, width)
            scores = jax.nn.leaky_relu((z * a).sum(-1)[senders] + (z * b).sum(-1)[receivers])
            p = jnp.exp(scores - jax.ops.segment_max(scores, receivers, nodes)[receivers])
            p = p / (jax.ops.segment_sum(p, receivers, nodes)[receivers] + 1e-6)
            x = jax.nn.elu(jax.ops.segment_sum(z[senders] * p[..., None], receivers, nodes).reshape(x.shape))
        return jnp.mean(x**2)

    layer = lambda i: (
        *weights(heads * width, heads * width, seed=i),
        normal(heads, width),
        normal(heads, width, seed=1),
    )
    graph = integers(nodes, edges), integers(nodes, edges, seed=1)
    return unmodified(loss, [layer(i) for i in range(3)], (normal(nodes, heads * width), *graph))


def mixture_of_experts(experts: int = 8, width: int = 64, hidden: int = 256) -> Program:
    """The two experts that a gate likes best, each computed for all (Shazeer et al. 2017)."""

    def loss(params, x):
        chances = jax.nn.softmax(x @ params["gate"])
        best, which = lax.top_k(chances, 2)
        gate = jnp.zeros_like(chances).at[jnp.arange(len(x))[:, None], which].set(best)
        h = jax.nn.silu(jnp.einsum("td,edh->eth", x, params["up"]))
        return jnp.mean((x + jnp.einsum("eth,ehd,te->td", h, params["down"], gate)) ** 2)

    up, down = normal(experts, width, hidden, scale=0.1), normal(experts, hidden, width, scale=0.1)
    return unmodified(loss, {"gate": normal(width, experts), "up": up, "down": down}, (normal(512, width),))


# Sequences and state spaces


def selective_state_space(parallel: bool, width: int = 64, states: int = 16) -> Program:
    """h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t, y_t = C_t h_t, in logarithmic depth or step by step (Gu & Dao 2023, alg. 2)."""
    names = {"in": (width, 2 * width), "b": (width, states), "c": (width, states), "delta": (width, width)}
    params = {name: normal(*shape, scale=0.1) for name, shape in names.items()} | {
        "out": normal(width, width, scale=0.1)
    }
    params["a"] = jnp.log(jnp.broadcast_to(jnp.arange(1.0, states + 1), (width, states)))

    def recurrence(decay, new):
        if parallel:
            after = lambda one, two: (one[0] * two[0], two[0] * one[1] + two[1])
            return lax.associative_scan(after, (decay, new), axis=1)[1]
        step = lambda h, now: (now[0] * h + now[1],) * 2
        time_first = lambda x: jnp.swapaxes(x, 0, 1)
        return time_first(lax.scan(step, jnp.zeros_like(new[:, 0]), (time_first(decay), time_first(new)))[1])

    def loss(params, x):
        for _ in range(2):
            u, z = jnp.split(x @ params["in"], 2, -1)
            u = jax.nn.silu(u)
            delta = jax.nn.softplus(u @ params["delta"])
            decay = jnp.exp(-delta[..., None] * jnp.exp(params["a"]))
            h = recurrence(decay, (delta * u)[..., None] * (u @ params["b"])[:, :, None])
            x = x + ((h * (u @ params["c"])[:, :, None]).sum(-1) * jax.nn.silu(z)) @ params["out"]
        return jnp.mean(x**2)

    return unmodified(loss, params, (normal(4, 256, width),))


def gated_convolutions(layers: int = 8, width: int = 32) -> Program:
    """tanh(a) sigmoid(b) of causal convolutions, each twice as wide as the last (van den Oord et al. 2016, eq. 2)."""

    def loss(params, x):
        skipped = jnp.zeros_like(x)
        for i, (w, out) in enumerate(params):
            dimensions = ("NWC", "WIO", "NWC")
            h = lax.conv_general_dilated(x, w, (1,), [(2**i, 0)], rhs_dilation=(2**i,), dimension_numbers=dimensions)
            a, b = jnp.split(h, 2, -1)
            z = jnp.tanh(a) * jax.nn.sigmoid(b) @ out
            x, skipped = x + z, skipped + z
        return jnp.mean(skipped**2)

    layer = lambda i: (normal(2, width, 2 * width, scale=0.1, seed=i), normal(width, width, scale=0.1, seed=i))
    return unmodified(loss, [layer(i) for i in range(layers)], (normal(4, 1024, width),))


def kalman_filter(steps: int = 300) -> Program:
    """-log p(y) of a linear Gaussian state space, by its innovations (Kalman 1960)."""

    def loss(params, ys):
        a, h, q, r = params["transition"], params["observation"], 0.1 * jnp.eye(4), jnp.eye(2)

        def step(state, y):
            mean, covariance = a @ state[0], a @ state[1] @ a.T + q
            s = h @ covariance @ h.T + r
            gain = jnp.linalg.solve(s, h @ covariance).T
            error = y - h @ mean
            log_p = -0.5 * (error @ jnp.linalg.solve(s, error) + jnp.linalg.slogdet(s)[1])
            return (mean + gain @ error, covariance - gain @ s @ gain.T), log_p

        return -jnp.mean(lax.scan(step, (jnp.zeros(4), jnp.eye(4)), ys)[1])

    transition = 0.9 * jnp.eye(4) + normal(4, 4, scale=0.02)
    return unmodified(loss, {"transition": transition, "observation": normal(2, 4)}, (normal(steps, 2),))


def alignment() -> Program:
    """Connectionist temporal classification, as optax has it (Graves et al. 2006)."""
    x, labels, none = normal(8, 100, 32), 1 + integers(31, 8, 20), jnp.zeros((8, 100))
    loss = lambda w, x: jnp.mean(optax.ctc_loss(x @ w, none, labels, none[:, :20]))
    return unmodified(loss, jnp.eye(32), (x,))


def decoding(length: int = 128, width: int = 64) -> Program:
    """Attention to a cache of keys and values that each step writes to."""

    def loss(params, x):
        query, key, value, out = params

        def step(carry, t):
            keys, values, h = carry
            keys, values = keys.at[:, t].set(h @ key), values.at[:, t].set(h @ value)
            scores = jnp.einsum("bd,btd->bt", h @ query, keys) / width**0.5
            p = jax.nn.softmax(jnp.where(jnp.arange(length) <= t, scores, -1e9))
            h = jnp.tanh(h + jnp.einsum("bt,btd->bd", p, values) @ out)
            return (keys, values, h), h

        cache = jnp.zeros((len(x), length, width))
        return jnp.mean(lax.scan(step, (cache, cache, x), jnp.arange(length))[1] ** 2)

    return unmodified(loss, weights(*[width] * 5), (normal(16, width),))


# Physics


def neural_ode() -> Program:
    """x' = tanh(x A) B (Chen et al. 2018), through the steps of its solution."""
    loss = lambda params, x: jnp.mean(runge_kutta(lambda x: perceptron(params, x, jnp.tanh), x, 0.05, 50) ** 2)
    return unmodified(loss, weights(32, 128, 32), (normal(256, 32),))


def lorenz() -> Program:
    """The parameters of 1,024 chaotic trajectories (Lorenz 1963, eq. 25 to 27)."""

    def loss(params, x):
        def velocity(state):
            x, y, z = state
            return jnp.stack([params[0] * (y - x), x * (params[1] - z) - y, x * y - params[2] * z])

        return jnp.mean(runge_kutta(velocity, x, 0.01, 100) ** 2)

    return unmodified(loss, jnp.array([10.0, 28.0, 8 / 3]), (normal(3, 1024),))


def wave_equation(size: int = 128, steps: int = 100) -> Program:
    """u'' = c Δu on a torus: which medium c sent this wave?"""

    def loss(c, u):
        def step(state, _):
            u, v = state
            neighbours = jnp.roll(u, 1, 0) + jnp.roll(u, -1, 0) + jnp.roll(u, 1, 1) + jnp.roll(u, -1, 1)
            v = v + 0.1 * c * (neighbours - 4 * u)
            return (u + 0.1 * v, v), None

        return jnp.sum(lax.scan(step, (u, jnp.zeros_like(u)), None, length=steps)[0][0] ** 2)

    return unmodified(loss, jnp.full((size, size), 0.5), (normal(size, size),))


def n_body(bodies: int = 128, steps: int = 30) -> Program:
    """x_i'' = -Σ_j m_j (x_i - x_j) / (|x_i - x_j|² + ε)^1.5."""

    def loss(x, masses):
        def step(state, _):
            x, v = state
            apart = x[:, None] - x
            a = -(masses[:, None] * apart / ((apart**2).sum(-1, keepdims=True) + 0.1) ** 1.5).sum(1)
            v = v + 0.01 * a
            return (x + 0.01 * v, v), None

        return jnp.sum(lax.scan(step, (x, jnp.zeros_like(x)), None, length=steps)[0][0] ** 2)

    return unmodified(loss, normal(bodies, 3), (jnp.full(bodies, 1 / bodies),))


def fourier_operator(layers: int = 3, width: int = 16, modes: int = 8) -> Program:
    """A linear map of the lowest frequencies in each layer (Li et al. 2021, eq. 4)."""

    def loss(params, x):
        for real, imaginary, local in params:
            spectrum = jnp.fft.rfft2(x, axes=(1, 2))
            low = jnp.einsum("bxyi,ioxy->bxyo", spectrum[:, :modes, :modes], lax.complex(real, imaginary))
            low = jnp.zeros_like(spectrum).at[:, :modes, :modes].set(low)
            x = jax.nn.gelu(jnp.fft.irfft2(low, s=x.shape[1:3], axes=(1, 2)) + x @ local)
        return jnp.mean(x**2)

    part = lambda i: normal(width, width, modes, modes, scale=0.1, seed=i)
    params = [(part(2 * i), part(2 * i + 1), *weights(width, width, seed=i)) for i in range(layers)]
    return unmodified(loss, params, (normal(8, 64, 64, width),))


def poisson() -> Program:
    """Δu = -1, for a network u with sines (Sitzmann et al. 2020): a gradient of second derivatives."""
    u = lambda params, x: perceptron(params, x, lambda x: jnp.sin(3 * x))[0]
    laplacian = lambda params, x: jnp.trace(jax.hessian(u, 1)(params, x))
    loss = lambda params, xs: jnp.mean(jax.vmap(lambda x: (laplacian(params, x) + 1) ** 2)(xs))
    return unmodified(loss, weights(2, 64, 64, 64, 1), (normal(256, 2),))


# Probability


def gaussian_process(points: int = 512) -> Program:
    """-log p(y) of a squared exponential kernel (Rasmussen & Williams 2006, eq. 2.30)."""

    def loss(params, x, y):
        distance = ((x[:, None] - x) ** 2 / jnp.exp(params["length"])).sum(-1)
        kernel = jnp.exp(params["scale"] - 0.5 * distance) + jnp.exp(params["noise"]) * jnp.eye(points)
        factor = jnp.linalg.cholesky(kernel)
        whitened = jax.scipy.linalg.solve_triangular(factor, y, lower=True)
        return 0.5 * jnp.sum(whitened**2) + jnp.sum(jnp.log(jnp.diag(factor)))

    params = {"length": jnp.zeros(4), "scale": jnp.zeros(()), "noise": jnp.array(-2.0)}
    return unmodified(loss, params, (normal(points, 4), normal(points)))


def optimal_transport(points: int = 200) -> Program:
    """50 steps of Sinkhorn's (Cuturi 2013, alg. 1), in logarithms."""

    def loss(x, y):
        cost = ((x[:, None] - y) ** 2).sum(-1) / 0.5

        def step(potentials, _):
            u = -jax.nn.logsumexp(potentials[1] - cost, 1)
            return (u, -jax.nn.logsumexp(u[:, None] - cost, 0)), None

        (u, v), _ = lax.scan(step, (jnp.zeros(points), jnp.zeros(points)), None, length=50)
        return jnp.sum(jnp.exp(u[:, None] + v - cost) * cost)

    return unmodified(loss, normal(points, 8), (normal(points, 8, seed=1),))


def autoencoder() -> Program:
    """The evidence lower bound of a variational autoencoder (Kingma & Welling 2014, eq. 10)."""

    def loss(params, x, noise):
        mean, log_variance = jnp.split(perceptron(params["encoder"], x), 2, -1)
        logits = perceptron(params["decoder"], mean + jnp.exp(0.5 * log_variance) * noise)
        distance = optax.sigmoid_binary_cross_entropy(logits, x).sum(-1)
        return jnp.mean(distance + 0.5 * (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(-1))

    params = {"encoder": weights(784, 400, 40), "decoder": weights(20, 400, 784)}
    return unmodified(loss, params, (jax.nn.sigmoid(normal(256, 784)), normal(256, 20)))


def coupling_flow(layers: int = 6) -> Program:
    """-log p(x) by affine couplings (Dinh et al. 2017, eq. 4 and 6)."""

    def loss(params, x):
        log_volume = 0.0
        for layer in params:
            first, second = jnp.split(x, 2, -1)
            scale, shift = jnp.split(perceptron(layer, first, jnp.tanh), 2, -1)
            x = jnp.concatenate([second * jnp.exp(scale) + shift, first], -1)
            log_volume += scale.sum(-1)
        return jnp.mean(0.5 * (x**2).sum(-1) - log_volume)

    return unmodified(loss, [weights(32, 128, 64, seed=i) for i in range(layers)], (normal(1024, 64),))


def policy_gradient(actions: int = 5, batch: int = 4096) -> Program:
    """The clipped objective and an entropy bonus (Schulman et al. 2017, eq. 9)."""

    def loss(params, x, chosen, advantage, before):
        log_p = jax.nn.log_softmax(perceptron(params, x, jnp.tanh))
        ratio = jnp.exp(jnp.take_along_axis(log_p, chosen[:, None], 1)[:, 0] - before)
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
        return -jnp.mean(gain) + 0.01 * jnp.mean((jnp.exp(log_p) * log_p).sum(-1))

    data = normal(batch, 16), integers(actions, batch), normal(batch), jnp.full(batch, -1.6)
    return unmodified(loss, weights(16, 128, 128, actions), data)


# Images


class ConvNeXt(nn.Module):
    """Liu et al. 2022, fig. 4."""

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate((48, 96)):
            x = nn.Conv(width, (4, 4), (4, 4))(x) if i == 0 else nn.Conv(width, (2, 2), (2, 2))(nn.LayerNorm()(x))
            for _ in range(2):
                y = nn.LayerNorm()(nn.Conv(width, (7, 7), feature_group_count=width)(x))
                x = x + 0.1 * nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(y)))
        return nn.Dense(10)(x.mean((1, 2)))


class EfficientNet(nn.Module):
    """Inverted bottlenecks with squeeze and excitation (Tan & Le 2019), with group norm."""

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = lambda x: nn.GroupNorm(4)(x)
        x = nn.swish(norm(conv(16, (3, 3), (2, 2))(x)))
        for width, stride in ((16, 1), (24, 2), (24, 1), (40, 2)):
            wide = 4 * x.shape[-1]
            y = nn.swish(norm(conv(wide, (1, 1))(x)))
            y = nn.swish(norm(conv(wide, (5, 5), (stride, stride), feature_group_count=wide)(y)))
            squeezed = nn.swish(nn.Dense(wide // 16)(y.mean((1, 2), keepdims=True)))
            y = norm(conv(width, (1, 1))(y * nn.sigmoid(nn.Dense(wide)(squeezed))))
            x = x + y if x.shape == y.shape else y
        return nn.Dense(10)(x.mean((1, 2)))


class Bottlenecks(nn.Module):
    """He et al. 2016, fig. 5, with group norm."""

    @nn.compact
    def __call__(self, x):
        for width, stride in ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
            y = nn.relu(nn.GroupNorm(8)(nn.Conv(width // 2, (1, 1))(x)))
            y = nn.relu(nn.GroupNorm(8)(nn.Conv(width // 2, (3, 3), (stride, stride))(y)))
            y = nn.GroupNorm(8)(nn.Conv(width, (1, 1))(y))
            x = nn.relu(y + (x if x.shape == y.shape else nn.Conv(width, (1, 1), (stride, stride))(x)))
        return nn.Dense(10)(x.mean((1, 2)))


class Denoiser(nn.Module):
    """A U-Net of two levels with attention in the lower one (Ho et al. 2020, appendix B)."""

    @nn.compact
    def __call__(self, x):
        def block(x, width):
            y = nn.Conv(width, (3, 3))(nn.swish(nn.GroupNorm(8)(x)))
            y = nn.Conv(width, (3, 3))(nn.swish(nn.GroupNorm(8)(y)))
            return y + (x if x.shape[-1] == width else nn.Conv(width, (1, 1))(x))

        upper = block(nn.Conv(32, (3, 3))(x), 32)
        lower = block(nn.Conv(64, (3, 3), (2, 2))(upper), 64)
        n, height, width, features = lower.shape
        flat = nn.GroupNorm(8)(lower).reshape(n, height * width, features)
        lower = lower + nn.MultiHeadDotProductAttention(4)(flat, flat).reshape(lower.shape)
        larger = jax.image.resize(lower, (n, 2 * height, 2 * width, features), "nearest")
        return nn.Conv(3, (3, 3))(block(jnp.concatenate([larger, upper], -1), 32))


class Mixer(nn.Module):
    """Perceptrons over places and over features (Tolstikhin et al. 2021, eq. 1)."""

    @nn.compact
    def __call__(self, x):
        for _ in range(4):
            y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
            x = x + jnp.swapaxes(nn.Dense(x.shape[1])(nn.gelu(nn.Dense(256)(y))), 1, 2)
            x = x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(512)(nn.LayerNorm()(x))))
        return x


class Volumes(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (16, 32):
            x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3, 3))(x)), (2, 2, 2), (2, 2, 2))
        return x


def radiance_field(rays: int = 128, samples: int = 64) -> Program:
    """Colours along rays, weighted by density and transmittance (Mildenhall et al. 2020, eq. 3)."""

    def loss(params, x):
        angles = x[..., None] * 2.0 ** jnp.arange(10)
        encoded = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1).reshape(*x.shape[:-1], -1)
        out = perceptron(params, encoded)
        opacity = 1 - jnp.exp(-0.1 * jax.nn.relu(out[..., 3]))
        weight = opacity * jnp.cumprod(1 - opacity + 1e-10, -1)
        return jnp.mean((weight[..., None] * jax.nn.sigmoid(out[..., :3])).sum(1) ** 2)

    return unmodified(loss, weights(60, 128, 128, 128, 128, 128, 4), (normal(rays, samples, 3),))


def contrastive(batch: int = 1024) -> Program:
    """Which caption belongs to which image, both ways (Radford et al. 2021, fig. 3)."""

    def loss(params, *pairs):
        a, b = (x @ w for x, w in zip(pairs, params, strict=True))
        a, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
        logits = 20 * a @ b.T
        return -jnp.mean(jnp.diag(jax.nn.log_softmax(logits, 0)) + jnp.diag(jax.nn.log_softmax(logits, 1)))

    params = [*weights(128, 64), *weights(128, 64, seed=1)]
    return unmodified(loss, params, (normal(batch, 128), normal(batch, 128, seed=1)))


# Language


class Decoder(nn.Module):
    """Root mean squares, rotated queries and keys, gated perceptrons (Touvron et al. 2023, section 2.2)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        angles = jnp.arange(x.shape[1])[:, None, None] * 1e4 ** (-jnp.arange(16) / 16)
        cos, sin = jnp.cos(angles).astype(self.dtype), jnp.sin(angles).astype(self.dtype)

        def rotated(x):
            a, b = jnp.split(x, 2, -1)
            return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

        dense = functools.partial(nn.DenseGeneral, use_bias=False, dtype=self.dtype)
        for _ in range(4):
            h = nn.RMSNorm(dtype=self.dtype)(x)
            query, key, value = dense((4, 32))(h), dense((4, 32))(h), dense((4, 32))(h)
            mask = nn.make_causal_mask(x[..., 0])
            mixed = nn.dot_product_attention(rotated(query), rotated(key), value, mask=mask)
            x = x + dense(x.shape[-1], (-2, -1))(mixed)
            h = nn.RMSNorm(dtype=self.dtype)(x)
            x = x + dense(x.shape[-1])(nn.silu(dense(384)(h)) * dense(384)(h))
        return dense(256)(x)


class Dropped(nn.Module):
    """A transformer with dropout, of the weights of attention too (Vaswani et al. 2017, section 5.4)."""

    @nn.compact
    def __call__(self, x):
        dropout = lambda x: nn.Dropout(0.1, deterministic=False)(x)
        for _ in range(3):
            h = nn.LayerNorm()(x)
            x = x + dropout(nn.MultiHeadDotProductAttention(4, dropout_rate=0.1, deterministic=False)(h, h))
            x = x + dropout(nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(512)(nn.LayerNorm()(x)))))
        return x


def tied_embeddings(vocabulary: int = 8192, width: int = 256) -> Program:
    """The next token, from logits that are products with the embeddings (Press & Wolf 2017)."""

    def loss(params, tokens):
        x = params["embeddings"][tokens]
        logits = (x + jax.nn.gelu(x @ params["dense"])) @ params["embeddings"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    params = {"embeddings": normal(vocabulary, width, scale=0.05), "dense": normal(width, width, scale=0.05)}
    return unmodified(loss, params, (integers(vocabulary, 8, 129),))


def sentences(vocabulary: int = 20000, width: int = 128) -> Program:
    """Sentences classified by the mean of their tokens."""

    def loss(params, tokens, y):
        x = jax.nn.gelu(params["embeddings"][tokens] @ params["dense"]).mean(1)
        return optax.softmax_cross_entropy_with_integer_labels(x @ params["out"], y).mean()

    params = {"embeddings": normal(vocabulary, width, scale=0.1), "dense": normal(width, width, scale=0.1)}
    params["out"] = normal(width, 2)
    return unmodified(loss, params, (integers(vocabulary, 32, 128), integers(2, 32)))


def recommendations(features: int = 8, width: int = 32) -> Program:
    """Embeddings, their products in pairs, and a perceptron of both (Naumov et al. 2019)."""
    pairs = np.triu_indices(features, 1)

    def loss(params, ids, y):
        x = params["embeddings"][ids]
        products = jnp.einsum("bfd,bgd->bfg", x, x)[:, *pairs]
        logits = perceptron(params["dense"], jnp.concatenate([x.reshape(len(x), -1), products], 1))[:, 0]
        return optax.sigmoid_binary_cross_entropy(logits, y).mean()

    params = {"embeddings": normal(50000, width, scale=0.1), "dense": weights(features * width + len(pairs[0]), 128, 1)}
    return unmodified(loss, params, (integers(50000, 1024, features), jnp.ones(1024)))


# Depth and loops


def deep(layers: int = 100, width: int = 64) -> Program:
    """x <- x + gelu(x W) / 10, written out."""

    def loss(params, x):
        for w in params:
            x = x + 0.1 * jax.nn.gelu(x @ w)
        return jnp.mean(x**2)

    return unmodified(loss, weights(*[width] * (layers + 1)), (normal(256, width),))


def fixed_steps(steps: int = 100, width: int = 256) -> Program:
    """h <- tanh(h W + x), in a `fori_loop`."""

    def loss(w, x):
        return jnp.mean(lax.fori_loop(0, steps, lambda _, h: jnp.tanh(h @ w + x), jnp.zeros_like(x)) ** 2)

    return unmodified(loss, normal(width, width, scale=0.05), (normal(32, width),))


def sorted_quantiles() -> Program:
    """What a sort and a quantile hand back."""

    def loss(w, x):
        y = jnp.sort(x @ w, 0)
        return jnp.mean(jnp.diff(y, axis=0) ** 2) + jnp.quantile(y, 0.9)

    return unmodified(loss, normal(32, 8), (normal(4096, 32),))


CASES: dict[str, Callable[[], Program]] = {
    "graph-convolution": graph_convolution,
    "graph-attention": graph_attention,
    "mixture-of-experts": mixture_of_experts,
    "state-space": lambda: selective_state_space(parallel=True),
    "state-space-steps": lambda: selective_state_space(parallel=False),
    "gated-convolutions": gated_convolutions,
    "kalman-filter": kalman_filter,
    "alignment": alignment,
    "decoding": decoding,
    "neural-ode": neural_ode,
    "lorenz": lorenz,
    "wave-equation": wave_equation,
    "n-body": n_body,
    "fourier-operator": fourier_operator,
    "poisson": poisson,
    "gaussian-process": gaussian_process,
    "optimal-transport": optimal_transport,
    "autoencoder": autoencoder,
    "coupling-flow": coupling_flow,
    "policy-gradient": policy_gradient,
    "convnext": lambda: mean_square(ConvNeXt(), normal(16, 64, 64, 3)),
    "efficientnet": lambda: mean_square(EfficientNet(), normal(16, 64, 64, 3)),
    "bottlenecks": lambda: mean_square(Bottlenecks(), normal(16, 32, 32, 16)),
    "denoiser": lambda: mean_square(Denoiser(), normal(8, 32, 32, 3)),
    "mixer": lambda: mean_square(Mixer(), normal(16, 64, 128)),
    "volumes": lambda: mean_square(Volumes(), normal(4, 16, 32, 32, 4)),
    "radiance-field": radiance_field,
    "contrastive": contrastive,
    "decoder": lambda: mean_square(Decoder(), normal(4, 128, 128)),
    "decoder-bfloat16": lambda: mean_square(Decoder(jnp.bfloat16), normal(4, 128, 128).astype(jnp.bfloat16)),
    "dropout": lambda: mean_square(Dropped(), normal(4, 128, 128), dropout=jax.random.key(1)),
    "tied-embeddings": tied_embeddings,
    "sentences": sentences,
    "recommendations": recommendations,
    "deep": deep,
    "fixed-steps": fixed_steps,
    "sorted-quantiles": sorted_quantiles,
}
