"""Attention between pixels, of queries, keys and values as the convolutions of U-Nets leave them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn import functional

from stylegan_ops import autograd

MULTIPLE = 32  # of pixels, that the kernels want
MAX_CHANNELS = 128  # of a head: the most that were tried


def attention(qkv: Tensor) -> Tensor:
    """Map every pixel's query to the sum of all values, weighted by the softmax of its products with their keys.

    Contiguous float32 tensors on the CPU with 8, 16, ... or 128 channels a head and a multiple of 32 pixels have
    kernels that leave the pixels of a channel side by side. All else is done by PyTorch's
    scaled_dot_product_attention.

    Args:
        qkv: [N, heads, C, 3, L]: query, key and value of each channel of L pixels. Products are divided by sqrt(C).

    Returns:
        [N, heads, C, L], of qkv's dtype.
    """
    kernels = _kernels_for(qkv)
    if kernels is None:
        query, key, value = qkv.permute(3, 0, 1, 4, 2).contiguous().unbind(0)  # each [N, heads, L, C]
        return functional.scaled_dot_product_attention(query, key, value).transpose(2, 3)
    if autograd.needs_grad(qkv):
        return _Attention.apply(qkv, kernels)
    return kernels.attention(qkv, qkv.shape[2] ** -0.5)


def _kernels_for(qkv: Tensor) -> Any:
    if qkv.dtype != torch.float32 or not qkv.is_contiguous() or qkv.numel() == 0:
        return None
    channels, length = qkv.shape[2], qkv.shape[4]
    if channels % 8 or channels > MAX_CHANNELS or length % MULTIPLE:
        return None
    kernels, differentiable = autograd.route(qkv)
    if differentiable or not hasattr(kernels, "attention") or torch.is_autocast_enabled(qkv.device.type):
        return None
    return kernels


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, kernels: Any) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.kernels = kernels
        return kernels.attention(qkv, qkv.shape[2] ** -0.5)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None]:
        (qkv,) = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return ctx.kernels.attention_grad(dy.contiguous(), qkv, qkv.shape[2] ** -0.5), None
        # Second derivatives are wanted: as PyTorch knows them, in a view of what is behind qkv.
        source = qkv.view_as(qkv)
        query, key, value = source.unbind(3)
        weights = (query.transpose(2, 3) @ key * qkv.shape[2] ** -0.5).softmax(dim=3)
        y = value @ weights.transpose(2, 3)
        return torch.autograd.grad(y, source, dy, create_graph=True)[0], None
