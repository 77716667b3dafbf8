"""Layers of the StyleGAN3 generator, under the names of the checkpoints; StyleGAN-XL has the same ones.

All signals are band-limited: every layer knows the cutoff and the sampling rate of its input and of its result, and
applies its nonlinearity between two low-pass filters. (Karras et al., "Alias-Free Generative Adversarial Networks",
arXiv 2106.12423, sections 2 and 3.)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from refine.networks.initial import identity, normal
from refine.networks.stylegan2_layers import FullyConnectedLayer, normalize_2nd_moment
from refine.networks.stylegan3_options import InputOptions, LayerOptions
from stylegan_ops.filtered_lrelu import filtered_lrelu
from stylegan_ops.modulated_conv2d import modulated_conv2d


def lowpass_filter(taps: int, cutoff: float, width: float, rate: float, radial: bool = False) -> Tensor | None:
    """Low-pass filter with a Kaiser window (appendix C of the paper).

    Args:
        taps: Number of taps along each axis.
        cutoff: Cutoff frequency.
        width: Width of the transition band.
        rate: Sampling rate, in the unit of the frequencies.
        radial: True for a radially symmetric filter: a jinc in place of the product of two sincs.

    Returns:
        Separable [taps] or radial [taps, taps] filter of unit sum, float32; None for a single tap, which is 1.
    """
    if taps == 1:
        return None
    if torch.empty(0).is_meta:  # Values come from a checkpoint, and SciPy takes long to import.
        return torch.empty([taps] * (2 if radial else 1))
    from scipy import signal, special

    beta = signal.kaiser_beta(signal.kaiser_atten(taps, width / (rate / 2)))
    window = signal.windows.kaiser(taps, beta)
    positions = (np.arange(taps) - (taps - 1) / 2) / rate
    if radial:
        radii = np.hypot(*np.meshgrid(positions, positions))
        # The Fourier transform of a disk; its value in the center is the limit.
        safe = np.where(radii == 0, 1, radii)
        jinc = np.where(radii == 0, math.pi * cutoff**2, special.j1(2 * math.pi * cutoff * safe) * cutoff / safe)
        response = jinc * np.outer(window, window)
    else:
        response = np.sinc(2 * cutoff * positions) * window
    return torch.from_numpy((response / response.sum()).astype(np.float32))


class SynthesisInput(nn.Module):
    """Fourier features at random frequencies, translated and rotated by w and by the buffer `transform`."""

    def __init__(self, options: InputOptions) -> None:
        super().__init__()
        self.channels, self.size = options.channels, options.size
        self.sampling_rate, self.bandwidth = options.sampling_rate, options.bandwidth
        self.weight = nn.Parameter(normal(self.channels, self.channels))
        self.affine = FullyConnectedLayer(options.w_dim, 4)
        nn.init.zeros_(self.affine.weight)
        self.affine.bias = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.0], device=self.weight.device))
        self.transform: Tensor
        self.freqs: Tensor
        self.phases: Tensor
        self.register_buffer("transform", identity(3))
        self.register_buffer("freqs", _frequencies(self.channels, self.bandwidth))
        self.register_buffer("phases", torch.rand(self.channels) - 0.5 if not self.weight.is_meta else self.freqs[:, 0])

    def forward(self, w: Tensor) -> Tensor:
        """Maps w [N, w_dim] to features [N, channels, size, size] at `sampling_rate` pixels per image width."""
        freqs, phases = self.placed(w)
        # The canvas is centered at 0; pixels are sampled in their middle.
        positions = (torch.arange(self.size, device=w.device, dtype=w.dtype) + 0.5 - self.size / 2) / self.sampling_rate
        along_x = freqs[:, :, :1] * positions + phases[:, :, None]  # [N, channels, size]
        along_y = freqs[:, :, 1:] * positions
        waves = torch.sin(2 * math.pi * (along_y[:, :, :, None] + along_x[:, :, None, :]))
        # Frequencies that a rotation or a scaling moved beyond the bandwidth fade out before they alias.
        excess = (freqs.norm(dim=2) - self.bandwidth) / (self.sampling_rate / 2 - self.bandwidth)
        mixing = self.weight / math.sqrt(self.channels) * (1 - excess).clamp(0, 1)[:, None, :]  # [N, out, in]
        return (mixing @ waves.flatten(2)).unflatten(2, waves.shape[2:])

    def placed(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Frequencies [N, channels, 2] and phases [N, channels] after the transforms of w and of `transform`.

        With the point p of the canvas taken from the point R(p - t) of the features, R a rotation and t a translation,
        f.R(p - t) + phase is a wave of frequency R'f.
        """
        cos, sin, shift_x, shift_y = self.affine(w).unbind(1)
        length = (cos.square() + sin.square()).sqrt()
        cos, sin, shift_x, shift_y = cos / length, sin / length, shift_x / length, shift_y / length
        rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # [N, 2, 2]
        linear, offset = self.transform[:2, :2], self.transform[:2, 2]
        learned = self.freqs @ rotation  # [N, channels, 2]
        shift = offset - torch.stack([shift_x, shift_y], 1)  # [N, 2]
        return learned @ linear, self.phases + (learned @ shift[:, :, None]).squeeze(2)


def _frequencies(count: int, bandwidth: float) -> Tensor:
    """Frequencies [count, 2], evenly distributed over the disk of the radius `bandwidth`."""
    freqs = normal(count, 2)
    if freqs.is_meta:
        return freqs
    # Of normal numbers, r^2 / 2 is exponentially distributed and exp(-r^2 / 2) uniformly: the square of the new radius.
    squares = freqs.square().sum(1, keepdim=True)
    return freqs * (squares.rsqrt() * (-squares / 4).exp() * bandwidth)


class SynthesisLayer(nn.Module):
    """Modulated convolution and filtered activation: [N, in, in_size, in_size] -> [N, out, out_size, out_size]."""

    def __init__(self, options: LayerOptions) -> None:
        super().__init__()
        self.options = options
        self.affine = FullyConnectedLayer(options.w_dim, options.in_channels, bias_init=1)
        kernel = options.kernel
        self.weight = nn.Parameter(normal(options.out_channels, options.in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(options.out_channels))
        self.magnitude_ema: Tensor
        self.up_filter: Tensor | None
        self.down_filter: Tensor | None
        rate = options.activation_rate
        up = lowpass_filter(options.up_taps, options.in_cutoff, 2 * options.in_half_width, rate)
        down = lowpass_filter(
            options.down_taps, options.out_cutoff, 2 * options.out_half_width, rate, options.down_radial
        )
        self.register_buffer("magnitude_ema", torch.ones([]))
        self.register_buffer("up_filter", up)
        self.register_buffer("down_filter", down)

    def forward(self, x: Tensor, w: Tensor, force_fp32: bool = False) -> Tensor:
        """Applies the layer to x in the style w [N, w_dim]."""
        options = self.options
        half = options.use_fp16 and not force_fp32 and x.device.type == "cuda"
        styles: Tensor = self.affine(w)
        weight: Tensor = self.weight
        if options.is_torgb:
            styles = styles / math.sqrt(weight[0].numel())
        else:
            # Demodulation cancels both scales; this keeps its small constant small.
            weight = weight * weight.square().mean([1, 2, 3], keepdim=True).rsqrt()
            styles = normalize_2nd_moment(styles)
        y = modulated_conv2d(
            x.half() if half else x.to(w.dtype),
            weight,
            styles,
            padding=options.kernel - 1,
            demodulate=not options.is_torgb,
            gain=self.magnitude_ema.rsqrt(),  # The input has unit variance then.
        )
        return filtered_lrelu(
            y,
            self.up_filter,
            self.down_filter,
            self.bias.to(y.dtype),
            up=options.up,
            down=options.down,
            padding=options.padding,
            gain=1 if options.is_torgb else math.sqrt(2),
            slope=1 if options.is_torgb else 0.2,
            clamp=options.conv_clamp,
        )
