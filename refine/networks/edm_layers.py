"""Layers of the EDM family's U-Nets: resampling convolutions, noise level embeddings, the residual block.

Module, parameter and buffer names are those of EDM checkpoints; everything that is not in a checkpoint is a
plain Python number, so that the networks can be built on the meta device. Parameters stay float32, while
activations may be half precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from refine.errors import UserError
from refine.networks.initial import normal
from stylegan_ops.attention import attention
from stylegan_ops.conv1x1 import conv1x1
from stylegan_ops.conv3x3 import conv3x3
from stylegan_ops.group_norm_silu import group_norm_silu
from stylegan_ops.norm_conv3x3 import Norm, norm_conv3x3
from stylegan_ops.upfirdn2d import upfirdn2d

Resampling = Literal["up", "down"]


def resampling_kernel(taps: Sequence[float]) -> Tensor:
    """The [1, 1, k, k] outer product of a 1-D filter with itself, summing to one.

    Args:
        taps: Taps of the filter, with a sum other than 0.
    """
    row = torch.tensor(taps, dtype=torch.float32, device="cpu")
    return (row.outer(row) / row.sum().square())[None, None]


def filter_by_2(x: Tensor, kernel: Tensor, resampling: Resampling, padding: int) -> Tensor:
    """Filters every channel of x [N, C, H, W] and changes its resolution by two."""
    f, taps = kernel[0, 0], kernel.shape[3]
    if resampling == "up":
        # Three of four samples are inserted zeros: the factor 4 keeps the mean.
        before, after = taps - 1 - padding, taps - 2 - padding
        return upfirdn2d(x, f, up=2, padding=(before, after, before, after), gain=4)
    return upfirdn2d(x, f, down=2, padding=padding, flip_filter=True)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolves x, zero-padded such that its size stays."""
    if weight.shape[2] == 1:
        return conv1x1(x, weight, bias)
    if weight.shape[2] == 3:
        return conv3x3(x, weight, bias)
    return functional.conv2d(x, weight, bias, padding=weight.shape[2] // 2)


class Resample(nn.Module):
    """Doubles or halves the resolution of [N, C, H, W] with a separable filter."""

    resample_filter: Tensor

    def __init__(self, taps: Sequence[float], resampling: Resampling) -> None:
        super().__init__()
        self.resampling = resampling
        self.filter_padding = (len(taps) - 1) // 2
        self.register_buffer("resample_filter", resampling_kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, 2H, 2W] or [N, C, H/2, W/2]."""
        return filter_by_2(x, self.resample_filter, self.resampling, self.filter_padding)


class Conv2d(nn.Conv2d):
    """Zero-padded convolution that keeps the resolution, or changes it by two, in the dtype of its input.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd width of the kernel.
        resampling: Resolution change, before the convolution.
        taps: 1-D resampling filter of even length.
        convolve_first: Whether to convolve before downsampling; only with resampling="down".
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        resampling: Resampling | None = None,
        taps: Sequence[float] = (1, 1),
        convolve_first: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.resampling = resampling
        self.filter_padding = (len(taps) - 1) // 2
        self.convolve_first = convolve_first
        if resampling is not None:
            self.register_buffer("resample_filter", resampling_kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, H', W']."""
        assert self.bias is not None
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        if self.resampling is None:
            return _convolve(x, weight, bias)
        if self.convolve_first:
            # The filter sees convolved values outside of the image: its padding moves into the convolution.
            x = functional.conv2d(x, weight, bias, padding=self.kernel_size[0] // 2 + self.filter_padding)
            return filter_by_2(x, self.resample_filter, self.resampling, padding=0)
        return _convolve(filter_by_2(x, self.resample_filter, self.resampling, self.filter_padding), weight, bias)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Sets elements to zero with probability p, to 1 / 65536, and scales the others up to keep the mean.

    On the CPU four decisions come from one 64-bit number of PyTorch's default generator, which halves the time that
    PyTorch's own dropout takes there.
    """
    keep = _kept(x, p, training)
    if keep is None:
        return functional.dropout(x, p, training)
    return x * keep * _gain(p)


def _kept(x: Tensor, p: float, training: bool) -> Tensor | None:
    """Mask of the elements that dropout keeps; None if PyTorch decides."""
    if not training or p == 0 or not x.is_cpu or torch.compiler.is_compiling():
        return None
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return bits.view(torch.int16)[: x.numel()].view(x.shape) >= round(p * 65536) - 32768


def _gain(p: float) -> float:
    return 1 / (1 - p) if p < 1 else 0.0


class GroupNorm(nn.GroupNorm):
    """Group normalization in the dtype of its input.

    Args:
        channels: Channels of the input.
        eps: Epsilon added to the variance.
        groups: Number of groups; None for up to 32 groups of at least four channels.
    """

    def __init__(self, channels: int, eps: float, groups: int | None = None) -> None:
        super().__init__(groups or min(32, channels // 4), channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return functional.group_norm(x, self.num_groups, weight, bias, self.eps)

    def silu(
        self, x: Tensor, before: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """SiLU of forward(x + before) * (1 + scale) + shift; all arguments but x are [N, C]."""
        return group_norm_silu(x, *self.arguments(x.dtype, before, scale, shift))

    def arguments(self, dtype: torch.dtype, before: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> Norm:
        """Arguments of `group_norm_silu` besides x."""
        return Norm(self.num_groups, self.weight.to(dtype), self.bias.to(dtype), self.eps, before, scale, shift)


class PositionalEmbedding(nn.Module):
    """Cosines, then sines, of a number at geometrically spaced frequencies from 1 down to 1 / 10000.

    Args:
        channels: Width of the embedding, even.
        endpoint: True if the lowest frequency is 1 / 10000 (DDPM++), False if the series stops before it (ADM).
    """

    def __init__(self, channels: int, endpoint: bool) -> None:
        super().__init__()
        if channels % 2:
            raise UserError(f"A positional embedding needs an even number of channels, not {channels}.")
        self.channels = channels
        self.endpoint = endpoint

    def forward(self, x: Tensor) -> Tensor:
        """[N] -> [N, channels]."""
        count = self.channels // 2
        index = torch.arange(count, dtype=x.dtype, device=x.device)
        frequencies = (1 / 10000) ** (index / (count - 1 if self.endpoint else count))
        angles = x.outer(frequencies)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines, then sines, of a number at fixed random frequencies (NCSN++)."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", normal(channels // 2, std=16.0))

    def forward(self, x: Tensor) -> Tensor:
        """[N] -> [N, channels]."""
        angles = x.outer(2 * math.pi * self.freqs.to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


@dataclass(frozen=True)
class BlockOptions:
    """Options that all blocks of one U-Net share.

    Attributes:
        emb_channels: Width of the noise level embedding.
        num_heads: Number of attention heads; None for one per `head_channels`, hence no attention below that.
        dropout: Probability of dropping an activation before the last convolution, in training only.
        norm_eps: Epsilon of the group normalizations.
        skip_scale: Factor after every residual addition.
        adaptive_scale: Whether the embedding scales and shifts (ADM) or only shifts (DDPM++, NCSN++).
        resample_filter: Taps of the filter for resolution changes.
        resample_proj: Whether a skip that changes resolution has a 1x1 convolution even if the channels match.
        head_channels: Channels of an attention head, if `num_heads` is None.
        norm_groups: Groups of the group normalizations; see `GroupNorm`.
    """

    emb_channels: int
    num_heads: int | None
    dropout: float
    norm_eps: float
    skip_scale: float
    adaptive_scale: bool
    resample_filter: tuple[float, ...]
    resample_proj: bool
    head_channels: int = 64
    norm_groups: int | None = None


class UNetBlock(nn.Module):
    """Residual block, conditioned on an embedding, with optional self-attention after it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        options: BlockOptions,
        resampling: Resampling | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = options.dropout
        self.skip_scale = options.skip_scale
        self.adaptive_scale = options.adaptive_scale
        taps, eps, groups = options.resample_filter, options.norm_eps, options.norm_groups

        self.norm0 = GroupNorm(in_channels, eps, groups)
        self.conv0 = Conv2d(in_channels, out_channels, 3, resampling, taps)
        self.affine = nn.Linear(options.emb_channels, out_channels * (2 if options.adaptive_scale else 1))
        self.norm1 = GroupNorm(out_channels, eps, groups)
        self.conv1 = Conv2d(out_channels, out_channels, 3)

        self.skip: nn.Module | None = None
        if in_channels != out_channels or (resampling is not None and options.resample_proj):
            self.skip = Conv2d(in_channels, out_channels, 1, resampling, taps)
        elif resampling is not None:
            self.skip = Resample(taps, resampling)

        self.num_heads = 0
        if attention:
            self.num_heads = out_channels // options.head_channels if options.num_heads is None else options.num_heads
        if self.num_heads:
            if out_channels % self.num_heads:
                raise UserError(f"{out_channels} channels cannot be shared by {self.num_heads} attention heads.")
            self.norm2 = GroupNorm(out_channels, eps, groups)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Maps x [N, in_channels, H, W], emb [N or 1, emb_channels] to [N, out_channels, H', W']."""
        h = self._normed_conv(self.norm0, self.conv0, x)
        modulation = self.affine(emb).to(h.dtype).expand(h.shape[0], -1)
        if self.adaptive_scale:
            scale, shift = modulation.chunk(2, dim=1)
            h = self._normed_conv(self.norm1, self.conv1, h, self.dropout, scale=scale, shift=shift)
        else:
            h = self._normed_conv(self.norm1, self.conv1, h, self.dropout, before=modulation)
        h = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.num_heads:
            h = (h + self._self_attention(h)) * self.skip_scale
        return h

    def _normed_conv(
        self,
        norm: GroupNorm,
        conv: Conv2d,
        x: Tensor,
        p: float = 0.0,
        before: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Convolution of x after normalization, SiLU and dropout."""
        keep = _kept(x, p, self.training)
        if conv.resampling is not None or (keep is None and p and self.training):
            return conv(dropout(norm.silu(x, before, scale, shift), p, self.training))
        assert conv.bias is not None
        weight, bias = conv.weight.to(x.dtype), conv.bias.to(x.dtype)
        return norm_conv3x3(x, norm.arguments(x.dtype, before, scale, shift), weight, bias, keep, _gain(p))

    def _self_attention(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        # Checkpoints order the output channels of qkv as [head, channel in head, (query, key, value)].
        qkv = self.qkv(self.norm2(x)).reshape(n, self.num_heads, channels // self.num_heads, 3, height * width)
        return self.proj(attention(qkv).reshape(n, channels, height, width))
