"""Layers of EDM2 (Karras et al., arXiv 2312.02696), which preserve the magnitude of activations.

Weights are normalized whenever they are used, sums and concatenations are weighted, and no layer has a bias. Module
and parameter names are those of EDM2's pickles; everything that is not in a pickle is a plain Python number, so that
networks can be built on the meta device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from refine.errors import UserError
from refine.networks.edm_layers import Resampling, dropout, filter_by_2, resampling_kernel
from refine.networks.initial import normal
from stylegan_ops.attention import attention

EPS = 1e-4
RMS_OF_SILU = 0.596  # root mean square of silu(n) for standard normal n


def normalized(x: Tensor, dims: Sequence[int]) -> Tensor:
    """A tensor divided by its root mean square over some dimensions; the others keep a magnitude each.

    Args:
        x: Tensor of any shape.
        dims: Dimensions to average over.
    """
    count = math.prod(x.shape[dim] for dim in dims)
    norm = torch.linalg.vector_norm(x, dim=list(dims), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x / (EPS + norm / math.sqrt(count)).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU, scaled to keep the magnitude of normal numbers (eq. 81)."""
    return functional.silu(x) / RMS_OF_SILU


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Sum of (1 - t) a and t b, scaled to keep the magnitude of independent numbers (eq. 88)."""
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Channels of a and b, weighted so that b has the share t of the influence on what follows (eq. 103).

    Args:
        a: [N, C_a, H, W].
        b: [N, C_b, H, W].
        t: Balance from 0 to 1.
    """
    num_a, num_b = a.shape[1], b.shape[1]
    scale = math.sqrt((num_a + num_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (scale * (1 - t) / math.sqrt(num_a)), b * (scale * t / math.sqrt(num_b))], dim=1)


class MPConv(nn.Module):
    """Convolution, or for no kernel size a linear layer, with normalized weights and without bias.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Width of the kernel, odd; None for a linear layer.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | None) -> None:
        super().__init__()
        kernel = () if kernel_size is None else (kernel_size, kernel_size)
        self.weight = nn.Parameter(normal(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """[N, in_channels, ...] -> [N, out_channels, ...], times gain."""
        weight = self.weight.float() if self.weight.dtype == torch.float16 else self.weight
        fan_in = self.weight[0].numel()
        weight = (normalized(weight, range(1, weight.ndim)) * (gain / math.sqrt(fan_in))).to(x.dtype)
        if weight.ndim == 2:
            return functional.linear(x, weight)
        return functional.conv2d(x, weight, padding=weight.shape[2] // 2)

    @torch.no_grad()
    def normalize_weight(self) -> None:
        """Forces the stored rows to the root mean square that `forward` gives them."""
        self.weight.copy_(normalized(self.weight.float(), range(1, self.weight.ndim)))


class MPFourier(nn.Module):
    """Cosines of a number at fixed random frequencies and phases, of magnitude 1 (eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", normal(channels, std=2 * math.pi))
        self.register_buffer("phases", normal(channels, std=2 * math.pi))

    def forward(self, x: Tensor) -> Tensor:
        """[N] -> [N, channels]."""
        return (x.outer(self.freqs.to(x.dtype)) + self.phases.to(x.dtype)).cos() * math.sqrt(2)


class EDM2Block(nn.Module):
    """Residual block of the encoder or decoder, with optional self-attention after it.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        emb_channels: Width of the embedding.
        is_encoder: Whether the skip convolution and a pixel normalization come first, or the skip convolution late.
        resampling: Change of resolution at the start.
        attention: Whether there is self-attention.
        resample_filter: Taps of the filter for resolution changes.
        channels_per_head: Channels of an attention head.
        dropout: Probability of dropping an activation before the last convolution, in training only.
        res_balance: Share of the residual branch.
        attn_balance: Share of the attention branch.
        clip_act: Largest activation; None for no limit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        is_encoder: bool,
        resampling: Resampling | None = None,
        attention: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        channels_per_head: int = 64,
        dropout: float = 0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
    ) -> None:
        super().__init__()
        self.is_encoder, self.resampling, self.dropout = is_encoder, resampling, dropout
        self.res_balance, self.attn_balance, self.clip_act = res_balance, attn_balance, clip_act
        self._taps = tuple(resample_filter)
        self._kernel: Tensor | None = None
        self.num_heads = out_channels // channels_per_head if attention else 0
        if attention and (not self.num_heads or out_channels % self.num_heads):
            raise UserError(f"{out_channels} channels cannot be shared by heads of {channels_per_head} channels.")
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out_channels if is_encoder else in_channels, out_channels, 3)
        self.emb_linear = MPConv(emb_channels, out_channels, None)
        self.conv_res1 = MPConv(out_channels, out_channels, 3)
        self.conv_skip = MPConv(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1) if self.num_heads else None
        self.attn_proj = MPConv(out_channels, out_channels, 1) if self.num_heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Maps x [N, in_channels, H, W], emb [N or 1, emb_channels] to [N, out_channels, H', W']."""
        x = self._resampled(x)
        if self.is_encoder:
            x = x if self.conv_skip is None else self.conv_skip(x)
            x = normalized(x, [1])
        h = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        h = mp_silu(h * scale[:, :, None, None].to(h.dtype))
        if self.dropout:
            h = dropout(h, self.dropout, self.training)
        h = self.conv_res1(h)
        if not self.is_encoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, h, self.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            n, channels, height, width = x.shape
            # Checkpoints order the output channels of qkv as [head, channel in head, (query, key, value)].
            qkv = self.attn_qkv(x).reshape(n, self.num_heads, channels // self.num_heads, 3, height * width)
            mixed = attention(normalized(qkv, [2])).reshape(n, channels, height, width)
            x = mp_sum(x, self.attn_proj(mixed), self.attn_balance)
        return x if self.clip_act is None else x.clamp(-self.clip_act, self.clip_act)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resampling is None:
            return x
        if self._taps == (1, 1):
            is_down = self.resampling == "down"
            return functional.avg_pool2d(x, 2) if is_down else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        if self._kernel is None or self._kernel.device != x.device:
            self._kernel = resampling_kernel(self._taps).to(x.device)
        return filter_by_2(x, self._kernel, self.resampling, (len(self._taps) - 1) // 2)
