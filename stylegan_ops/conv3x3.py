"""3 x 3 convolutions, with a quarter of the multiplications where there are kernels for that."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn.grad import conv2d_input, conv2d_weight

from stylegan_ops import autograd

# Below, PyTorch's own are as quick: transforming pixels and filters takes longer than the products that it saves.
MIN_CHANNELS = 16
MIN_TILES = 32  # of 4 x 4 pixels, of all images
TILES_PER_FILTER = 4000  # least in_channels * out_channels / TILES_PER_FILTER tiles


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Correlate images, padded by one pixel of zeros, like `torch.conv2d(x, weight, bias, padding=1)`.

    Contiguous float32 images on the CPU of enough channels and pixels are convolved by Winograd's F(4x4, 3x3) (Lavin
    & Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308), and so are their gradients. It
    rounds some five times as coarsely as the sum itself: of 128 channels, by 1.1e-6 of a result's standard deviation
    on average. One infinite or NaN pixel makes NaN of all results in the tiles of 4 x 4 pixels that it reaches.
    All else is left to PyTorch: other tensors, second derivatives, compilers and transforms.

    Args:
        x: [N, in_channels, H, W].
        weight: [out_channels, in_channels, 3, 3] of x's dtype.
        bias: [out_channels] of x's dtype.

    Returns:
        [N, out_channels, H, W].
    """
    kernels = kernels_for(x, weight, bias)
    if kernels is None:
        return torch.conv2d(x, weight, bias, padding=1)
    if autograd.needs_grad(x, weight, bias):
        return _Conv3x3.apply(x, weight, bias, kernels)
    return kernels.conv3x3(x, weight, bias)


def kernels_for(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """The kernels that convolve these tensors faster than PyTorch does, or None."""
    if (
        x.dtype != torch.float32
        or weight.dtype != torch.float32
        or x.ndim != 4
        or weight.shape[2:] != (3, 3)
        or weight.shape[1] != x.shape[1]
        or not x.is_contiguous()
        or (bias is not None and bias.dtype != torch.float32)
    ):
        return None
    n, channels, height, width = x.shape
    out_channels = weight.shape[0]
    tiles = n * ((height + 3) // 4) * ((width + 3) // 4)
    if min(channels, out_channels) < MIN_CHANNELS:
        return None
    if tiles < MIN_TILES or tiles * TILES_PER_FILTER < channels * out_channels:
        return None
    kernels, differentiable = autograd.route(x, weight, bias)
    # Where PyTorch differentiates or looks inside, it has its own operators. Autocast wants another dtype.
    if differentiable or not hasattr(kernels, "conv3x3") or torch.is_autocast_enabled(x.device.type):
        return None
    return kernels


class _Conv3x3(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kernels: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.kernels = kernels
        return kernels.conv3x3(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = dw = db = None
        twice = torch.is_grad_enabled()  # Second derivatives are wanted, which PyTorch knows of its own operators.
        if ctx.needs_input_grad[0]:
            if twice:
                dx = conv2d_input(x.shape, weight, dy, padding=1)
            else:
                dx = ctx.kernels.conv3x3(dy, weight, transposed=True)
        if ctx.needs_input_grad[1]:
            if twice:
                dw = conv2d_weight(x, weight.shape, dy, padding=1)
            else:
                dw = ctx.kernels.conv3x3_filter_gradient(x, dy)
        if ctx.needs_input_grad[2]:
            db = dy.sum([0, 2, 3])
        return dx, dw, db, None
