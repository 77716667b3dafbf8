"""Definitions of the operators in plain PyTorch, with which every faster implementation is compared.

Derivatives of any order come from PyTorch's autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from stylegan_ops.arguments import Factor, PaddingLike, pad_or_crop, parse_factor, parse_padding


@dataclass(frozen=True)
class Activation:
    """An activation function of `bias_act`.

    Attributes:
        function: Maps (x, alpha) to the activation; only `lrelu` reads alpha, its slope below zero.
        alpha: Default of alpha.
        gain: Default factor after the activation; sqrt(2) restores unit variance behind a rectifier.
    """

    function: Callable[[Tensor, float], Tensor]
    alpha: float = 0.0
    gain: float = 1.0


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x, alpha: x),
    "relu": Activation(lambda x, alpha: functional.relu(x), gain=math.sqrt(2)),
    "lrelu": Activation(lambda x, alpha: functional.leaky_relu(x, alpha), alpha=0.2, gain=math.sqrt(2)),
    "tanh": Activation(lambda x, alpha: torch.tanh(x)),
    "sigmoid": Activation(lambda x, alpha: torch.sigmoid(x)),
    "elu": Activation(lambda x, alpha: functional.elu(x)),
    "selu": Activation(lambda x, alpha: functional.selu(x)),
    "softplus": Activation(lambda x, alpha: functional.softplus(x)),
    "swish": Activation(lambda x, alpha: x * torch.sigmoid(x), gain=math.sqrt(2)),
}


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Compute clamp(gain * act(x + b)); see `bias_act.bias_act`, which checks the arguments."""
    activation = ACTIVATIONS[act]
    alpha = activation.alpha if alpha is None else alpha
    gain = activation.gain if gain is None else gain
    if b is not None:
        shape = [1] * x.ndim
        shape[dim] = -1
        x = x + b.to(x.dtype).reshape(shape)
    x = activation.function(x, alpha)
    if gain != 1:
        x = x * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return x


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Factor = 1,
    down: Factor = 1,
    padding: PaddingLike = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Insert zeros, pad, convolve, drop pixels; see `upfirdn2d.upfirdn2d`, which checks the arguments."""
    insert, keep = parse_factor(up, "up"), parse_factor(down, "down")
    batch, channels, height, width = x.shape
    stuffed = x.new_zeros(batch, channels, height * insert.y, width * insert.x)
    stuffed[:, :, :: insert.y, :: insert.x] = x
    padded = pad_or_crop(stuffed, parse_padding(padding))
    y = torch.conv2d(padded, filter_kernel(f, x, flip_filter, gain), groups=channels)
    return y[:, :, :: keep.y, :: keep.x]


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: PaddingLike = 0,
    gain: float = math.sqrt(2),
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """Add the bias, upsample, activate, downsample; see `filtered_lrelu.filtered_lrelu`, which checks the arguments."""
    u = upfirdn2d(bias_act(x, b, gain=1), fu, up, 1, padding, flip_filter, up**2)
    return upfirdn2d(bias_act(u, None, 1, "lrelu", slope, gain, clamp), fd, 1, down, 0, flip_filter)


def filter_kernel(f: Tensor | None, x: Tensor, flip_filter: bool, gain: float) -> Tensor:
    """Expand a filter into the weight [C, 1, height, width] that makes depthwise `conv2d` on `x` apply it.

    PyTorch's convolutions correlate, so the taps are reversed unless `flip_filter` asks for correlation.
    """
    if f is None:
        f = torch.ones([1, 1], device=x.device)
    f = f.to(x.dtype)
    if f.ndim == 1:
        f = torch.outer(f, f)
    if not flip_filter:
        f = f.flip([0, 1])
    return (f * gain).expand(x.shape[1], 1, -1, -1)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Correlate images, padded by one pixel of zeros; see `conv3x3.conv3x3`."""
    return torch.conv2d(x, weight, bias, padding=1)


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Mix the channels of each pixel; see `conv1x1.conv1x1`."""
    return torch.conv2d(x, weight, bias)


def attention(qkv: Tensor) -> Tensor:
    """Weight values by the softmax of the products of queries and keys; see `attention.attention`."""
    query, key, value = qkv.unbind(3)  # each [N, heads, C, L]
    weights = (query.transpose(2, 3) @ key / math.sqrt(qkv.shape[2])).softmax(dim=3)
    return value @ weights.transpose(2, 3)


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    before: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
) -> Tensor:
    """Compute silu(group_norm(x + before; weight, bias) * (1 + scale) + shift); see `group_norm_silu`."""

    def per_channel(t: Tensor) -> Tensor:  # [C] or [N, C]
        return t.reshape(*t.shape, *[1] * (x.ndim - 2))

    y = x if before is None else x + per_channel(before)
    y = y.reshape(x.shape[0], groups, -1)
    variance, mean = torch.var_mean(y, dim=2, correction=0, keepdim=True)
    y = ((y - mean) / torch.sqrt(variance + eps)).reshape(x.shape)
    y = y * per_channel(weight) + per_channel(bias)
    if scale is not None:
        y = y * (1 + per_channel(scale))
    if shift is not None:
        y = y + per_channel(shift)
    return functional.silu(y)
