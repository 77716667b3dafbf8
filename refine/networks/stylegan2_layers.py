"""Layers of the StyleGAN2 generator, under the names of the checkpoints.

Weights have the equalized learning rate of "Progressive Growing of GANs" (arXiv 1710.10196): they are stored with unit
variance and scaled by 1 / sqrt(fan_in) whenever they are used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from refine.networks.initial import normal
from refine.networks.stylegan2_options import DEFAULT_FILTER, Filter, SynthesisOptions
from stylegan_ops.bias_act import ACTIVATIONS, bias_act
from stylegan_ops.conv2d_resample import conv2d_resample
from stylegan_ops.modulated_conv2d import modulated_conv2d
from stylegan_ops.upfirdn2d import setup_filter


def normalize_2nd_moment(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Scales x so that its mean square along `dim` is 1."""
    return x * (x.square().mean(dim=dim, keepdim=True) + eps).rsqrt()


class FullyConnectedLayer(nn.Module):
    """[N, in_features] -> [N, out_features], with equalized learning rate, bias and activation."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier
        self.weight = nn.Parameter(normal(out_features, in_features, std=1 / lr_multiplier))
        self.bias = nn.Parameter(torch.full([out_features], float(bias_init))) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in_features] to [N, out_features]."""
        bias = None if self.bias is None else self.bias * self.bias_gain
        return bias_act(x @ (self.weight * self.weight_gain).t(), bias, act=self.activation)


class Conv2dLayer(nn.Module):
    """The shortcut of a residual block: 1x1 convolution and upsampling by two, without bias or activation."""

    def __init__(self, in_channels: int, out_channels: int, resample_filter: Filter) -> None:
        super().__init__()
        self.weight_gain = 1 / math.sqrt(in_channels)
        self.weight = nn.Parameter(normal(out_channels, in_channels, 1, 1))
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", setup_filter(resample_filter))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Maps [N, in_channels, H, W] to [N, out_channels, 2 H, 2 W], times `gain`."""
        weight = (self.weight * (self.weight_gain * gain)).to(x.dtype)
        return conv2d_resample(x, weight, self.resample_filter, up=2)


class SynthesisLayer(nn.Module):
    """Modulated convolution, noise, bias and activation: [N, in, H, W] -> [N, out, resolution, resolution]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        up: int,
        options: SynthesisOptions,
    ) -> None:
        super().__init__()
        self.resolution, self.up = resolution, up
        self.use_noise = options.use_noise
        self.activation = options.activation
        self.conv_clamp = options.conv_clamp
        self.padding = options.kernel_size // 2
        self.act_gain = ACTIVATIONS[options.activation].gain
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(normal(out_channels, in_channels, options.kernel_size, options.kernel_size))
        self.resample_filter: Tensor
        # Layers that keep the resolution have the default filter in their checkpoints, which they never use.
        taps = options.resample_filter if up > 1 else DEFAULT_FILTER
        self.register_buffer("resample_filter", setup_filter(taps))
        if self.use_noise:
            self.noise_const: Tensor
            self.register_buffer("noise_const", normal(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(
        self, x: Tensor, w: Tensor, noise_mode: str = "random", fused_modconv: bool | None = True, gain: float = 1.0
    ) -> Tensor:
        """Applies the layer to x in the style w [N, w_dim]; `gain` scales the result and the clamp."""
        noise = None
        if self.use_noise and noise_mode == "random":
            # One normal draw [N, 1, resolution, resolution] a layer: part of what a seed means.
            size = [x.shape[0], 1, self.resolution, self.resolution]
            noise = torch.randn(size, device=x.device) * self.noise_strength
        elif self.use_noise and noise_mode == "const":
            noise = self.noise_const * self.noise_strength
        x = modulated_conv2d(
            x,
            self.weight,
            self.affine(w),
            noise,
            up=self.up,
            padding=self.padding,
            resample_filter=self.resample_filter,
            flip_weight=self.up == 1,  # How the weights of upsampling layers are stored.
            fused_modconv=fused_modconv,
        )
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, self.bias, act=self.activation, gain=self.act_gain * gain, clamp=clamp)


class ToRGBLayer(nn.Module):
    """Features to an image: 1x1 modulated convolution without demodulation, noise or activation."""

    def __init__(self, in_channels: int, img_channels: int, w_dim: int, conv_clamp: float | None) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.weight_gain = 1 / math.sqrt(in_channels)
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(normal(img_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(img_channels))

    def forward(self, x: Tensor, w: Tensor, fused_modconv: bool | None = True) -> Tensor:
        """Maps [N, in_channels, H, W] to [N, img_channels, H, W] in the style w [N, w_dim]."""
        styles = self.affine(w) * self.weight_gain
        x = modulated_conv2d(x, self.weight, styles, demodulate=False, fused_modconv=fused_modconv)
        return bias_act(x, self.bias, clamp=self.conv_clamp)
