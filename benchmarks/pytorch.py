"""The networks of `drop_in` as a user of PyTorch writes them, run eagerly. Optional: `pip install torch` (extra `bench`).

Parameters are PyTorch's own, so gradients are not compared; shapes, data and losses are the same. Convolutional nets are in
channels-last order, which is the faster on CPUs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np


def step(name: str, batch: tuple) -> Callable[[Any], tuple[Any, Any]] | None:
    """The loss and gradient of the network of that name on this batch; None without PyTorch, or without such a network."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch  # pyright: ignore[reportMissingImports]

    networks = _networks()
    if name not in networks:
        return None
    torch.manual_seed(0)
    x, *y = (torch.from_numpy(np.array(array)) for array in batch)  # a copy, which torch may write to
    model = networks[name]()
    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    parameters = list(model.parameters())

    def run(_):
        out = model(x)
        loss = torch.nn.functional.cross_entropy(out, y[0].long()) if y else out.square().mean()
        return loss.detach(), torch.autograd.grad(loss, parameters)

    return run


def _networks() -> dict[str, Callable[[], Any]]:
    from torch import nn  # pyright: ignore[reportMissingImports]

    class Residual(nn.Module):
        def __init__(self, *layers):
            super().__init__()
            self.body = nn.Sequential(*layers)

        def forward(self, x):
            return x + self.body(x)

    class Attention(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x):
            batch, time, width = x.shape
            split = lambda y: y.view(batch, time, self.heads, -1).transpose(1, 2)
            y = nn.functional.scaled_dot_product_attention(*map(split, self.qkv(x).chunk(3, -1)), is_causal=True)
            return self.out(y.transpose(1, 2).reshape(batch, time, width))

    class LSTM(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0]

    def mlp(width=1024):
        layers = [layer for inputs in (784, *[width] * 3) for layer in (nn.Linear(inputs, width), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(width, 10))

    def convolution(inputs, width, kernel, **options):
        return (
            nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=False, **options),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )

    def vgg(widths=(32, 64, 128)):
        layers = []
        for inputs, width in zip((3, *widths), widths, strict=False):
            layers += [*convolution(inputs, width, 3), *convolution(width, width, 3), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * widths[-1], 10))

    def mobilenet(widths=(32, 64, 128, 128, 256)):
        layers = [*convolution(3, widths[0], 3)]
        for i, (inputs, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            layers += convolution(inputs, inputs, 3, groups=inputs, stride=2 if i in (1, 2) else 1)
            layers += convolution(inputs, width, 1)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))

    def transformer(depth, width=128, heads=4):
        layers = []
        for _ in range(depth):
            layers.append(Residual(nn.LayerNorm(width), Attention(width, heads)))
            feed_forward = nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
            layers.append(Residual(nn.LayerNorm(width), *feed_forward))
        return nn.Sequential(*layers, nn.LayerNorm(width))

    return {
        "mlp": mlp,
        "vgg": vgg,
        "mobilenet": mobilenet,
        "lstm": lambda: LSTM(128, 128, batch_first=True),
        "transformer-12": lambda: transformer(12),
    }
