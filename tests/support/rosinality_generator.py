"""The generator of rosinality's stylegan2-pytorch as its state dict describes it: an implementation of its own.

Written from the format and the paper (arXiv 1912.04958) and independent of Refine's: every step is spelled out,
resampling as explicit zeros and a sliding sum, modulation sample by sample. `load_state_dict` is strict, so that the
names and shapes of a checkpoint are tested too.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn


def resample(x: Tensor, kernel: Tensor, up: int, before: int, after: int) -> Tensor:
    """Zeros between the pixels, zeros around, then the convolution with the kernel as a sum over its taps."""
    batch, channels, height, width = x.shape
    stuffed = torch.zeros(batch, channels, height, up, width, up, dtype=x.dtype)
    stuffed[:, :, :, 0, :, 0] = x
    stuffed = stuffed.reshape(batch, channels, height * up, width * up)
    size = height * up + before + after
    padded = torch.zeros(batch, channels, size, size, dtype=x.dtype)
    padded[:, :, before : before + height * up, before : before + width * up] = stuffed
    taps = kernel.shape[0]
    out = size - taps + 1
    y = torch.zeros(batch, channels, out, out, dtype=x.dtype)
    for i in range(taps):
        for j in range(taps):
            y += kernel[taps - 1 - i, taps - 1 - j] * padded[:, :, i : i + out, j : j + out]
    return y


def fused_lrelu(x: Tensor, bias: Tensor) -> Tensor:
    x = x + bias.reshape(1, -1, *[1] * (x.ndim - 2))
    return torch.where(x > 0, x, 0.2 * x) * 2**0.5


class EqualLinear(nn.Module):
    def __init__(self, in_dim: int, out_dim: int, lr_mul: float = 1.0, activation: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim))
        self.bias = nn.Parameter(torch.empty(out_dim))
        self.scale, self.lr_mul, self.activation = lr_mul / math.sqrt(in_dim), lr_mul, activation

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("ni,oi->no", x, self.weight * self.scale)
        return fused_lrelu(y, self.bias * self.lr_mul) if self.activation else y + self.bias * self.lr_mul


class PixelNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x**2).mean(dim=1, keepdim=True) + 1e-8)


class Filter(nn.Module):
    """`Blur` and `Upsample`: a buffer `kernel`, scaled by the four pixels that share one pixel's light."""

    def __init__(self, up: int, before: int, after: int) -> None:
        super().__init__()
        taps = np.array([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", torch.tensor(np.outer(taps, taps) / 64 * 4, dtype=torch.float32))
        self.up, self.before, self.after = up, before, after

    def forward(self, x: Tensor) -> Tensor:
        return resample(x, self.kernel, self.up, self.before, self.after)


class ModulatedConv2d(nn.Module):
    def __init__(
        self, inc: int, outc: int, size: int, style_dim: int, demodulate: bool = True, up: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, outc, inc, size, size))
        self.modulation = EqualLinear(style_dim, inc)
        self.demodulate, self.up, self.size = demodulate, up, size
        if up:
            self.blur = Filter(1, 1, 1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        results = []
        for image, s in zip(x, self.modulation(style), strict=True):
            weight = self.weight[0] / math.sqrt(self.weight[0, 0].numel()) * s[None, :, None, None]
            if self.demodulate:
                weight = weight / torch.sqrt((weight**2).sum(dim=(1, 2, 3), keepdim=True) + 1e-8)
            if self.up:  # a transposed convolution: every pixel paints the whole kernel
                size = 2 * image.shape[1] + 1
                y = torch.zeros(weight.shape[0], size, size, dtype=x.dtype)
                for i in range(3):
                    for j in range(3):
                        painted = torch.einsum("oi,ihw->ohw", weight[:, :, i, j], image)
                        y[:, i : i + size - 2 : 2, j : j + size - 2 : 2] += painted
            else:
                reach = self.size // 2
                padded = nn.functional.pad(image, [reach] * 4)
                height = image.shape[1]
                y = torch.zeros(weight.shape[0], height, height, dtype=x.dtype)
                for i in range(self.size):
                    for j in range(self.size):
                        seen = padded[:, i : i + height, j : j + height]
                        y += torch.einsum("oi,ihw->ohw", weight[:, :, i, j], seen)
            results.append(y)
        y = torch.stack(results)
        return self.blur(y) if self.up else y


class NoiseInjection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1))


class FusedLeakyReLU(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(channels))


class StyledConv(nn.Module):
    def __init__(self, inc: int, outc: int, style_dim: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inc, outc, 3, style_dim, up=up)
        self.noise = NoiseInjection()
        self.activate = FusedLeakyReLU(outc)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        return fused_lrelu(self.conv(x, style) + self.noise.weight * noise, self.activate.bias)


class ToRGB(nn.Module):
    def __init__(self, inc: int, style_dim: int, upsample: bool = True) -> None:
        super().__init__()
        if upsample:
            self.upsample = Filter(2, 2, 1)
        self.conv = ModulatedConv2d(inc, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.empty(1, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self.conv(x, style) + self.bias
        return y if skip is None else y + self.upsample(skip)


class ConstantInput(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.empty(1, channels, 4, 4))


class Generator(nn.Module):
    """`Generator(size, style_dim, n_mlp)` with a table of channels by resolution."""

    def __init__(self, size: int, style_dim: int, n_mlp: int, channels: dict[int, int]) -> None:
        super().__init__()
        layers = [EqualLinear(style_dim, style_dim, lr_mul=0.01, activation=True) for _ in range(n_mlp)]
        self.style = nn.Sequential(PixelNorm(), *layers)
        self.input = ConstantInput(channels[4])
        self.conv1 = StyledConv(channels[4], channels[4], style_dim)
        self.to_rgb1 = ToRGB(channels[4], style_dim, upsample=False)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        self.noises.register_buffer("noise_0", torch.empty(1, 1, 4, 4))
        for i in range(3, int(math.log2(size)) + 1):
            before, now = channels[2 ** (i - 1)], channels[2**i]
            self.convs.append(StyledConv(before, now, style_dim, up=True))
            self.convs.append(StyledConv(now, now, style_dim))
            self.to_rgbs.append(ToRGB(now, style_dim))
            for layer in (2 * i - 5, 2 * i - 4):
                self.noises.register_buffer(f"noise_{layer}", torch.empty(1, 1, 2**i, 2**i))

    def forward(self, z: Tensor, truncation: float, truncation_latent: Tensor) -> Tensor:
        w = self.style(z)
        w = truncation_latent + truncation * (w - truncation_latent)
        noises = [getattr(self.noises, f"noise_{i}") for i in range(len(self.convs) + 1)]
        x = self.conv1(self.input.input.expand(len(z), -1, -1, -1), w, noises[0])
        skip = self.to_rgb1(x, w)
        for i, to_rgb in enumerate(self.to_rgbs):
            x = self.convs[2 * i](x, w, noises[2 * i + 1])
            x = self.convs[2 * i + 1](x, w, noises[2 * i + 2])
            skip = to_rgb(x, w, skip)
        return skip
