"""Convolutions that mix the channels of each pixel, by the quicker of PyTorch's two ways."""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_ops import library, plain

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
    eager = x.is_cpu and library.route(x, weight, bias)[0] not in (plain, library.REGISTERED)
    many = x.ndim == 4 and x.shape[0] >= max(MIN_BATCH, torch.get_num_threads())
    if eager and many and x.is_contiguous() and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        return torch.ops.aten.thnn_conv2d(x, weight, [1, 1], bias)
    return torch.conv2d(x, weight, bias)
