"""PyTorch's bilinear sampling, as the augmentation pipe calls it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

enabled = False  # training scripts set it; nothing depends on it


def grid_sample(input: Tensor, grid: Tensor) -> Tensor:
    """Samples images [N, C, H, W] at `grid` [N, H', W', 2]: bilinear, zeros outside, corners not aligned.

    Differentiable as often as PyTorch's `grid_sample` is.
    """
    return functional.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
