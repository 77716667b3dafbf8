"""Pictures from tensors: conversion to 8 bits, and grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images [N, C, H, W] in [-1, 1] as the StyleGAN family stores them: x * 127.5 + 128, clamped, truncated."""
    return (images.float().cpu() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def image_grid(images: torch.Tensor, columns: int) -> Image.Image:
    """Images [N, C, H, W], C = 1 or 3, range [-1, 1], as one picture; the last row may be short."""
    batch, channels, height, width = images.shape
    pixels = to_uint8(images)
    rows = -(-batch // columns)
    canvas = torch.zeros(rows * columns, channels, height, width, dtype=torch.uint8)
    canvas[:batch] = pixels
    grid = canvas.reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    array: Any = grid.reshape(rows * height, columns * width, channels).numpy()
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if channels == 1 else array))
