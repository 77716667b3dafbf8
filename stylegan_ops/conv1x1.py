"""Convolutions that mix the channels of each pixel, by the quicker of PyTorch's two ways."""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_ops import autograd

MIN_BATCH = 16  # For fewer images, on one thread, PyTorch itself takes the way that is taken here.


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute `torch.conv2d(x, weight, bias)`.

    On the CPU, PyTorch rearranges many images for its library of convolutions, which takes longer than a product of
    matrices for each image.

    Args:
        x: [N, in_channels, H, W].
        weight: [out_channels, in_channels, 1, 1] of x's dtype.
        bias: [out_channels] of x's dtype.

    Returns:
        [N, out_channels, H, W].
    """
    _, differentiable = autograd.route(x, weight, bias)
    # Whatever looks inside an operator sees PyTorch's convolution.
    if differentiable or not x.is_cpu or x.dtype != torch.float32 or x.ndim != 4 or not x.is_contiguous():
        return torch.conv2d(x, weight, bias)
    if x.shape[0] < max(MIN_BATCH, torch.get_num_threads()) or torch.is_autocast_enabled("cpu"):
        return torch.conv2d(x, weight, bias)
    return torch.ops.aten.thnn_conv2d(x, weight, [1, 1], bias)
