"""Differentiable resizing, equal to Pillow's.

Data sets are made with Pillow: teachers were trained on images that its filters downsampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor


def _box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def _bicubic(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _sinc(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0


FILTERS: dict[str, tuple[Callable[[float], float], float]] = {  # name -> (kernel, radius in output pixels)
    "lanczos": (_lanczos, 3.0),
    "bicubic": (_bicubic, 2.0),
    "box": (_box, 0.5),
}


@lru_cache(maxsize=32)
def resize_matrix(in_size: int, out_size: int, name: str = "lanczos") -> Tensor:
    """Matrix that resizes one axis as Pillow's `Image.resize` does.

    Each row holds the kernel, widened by the reduction factor, centered on the output pixel, cut off at the image
    border, and normalized to sum 1.

    Args:
        in_size: Pixels of the axis before resizing.
        out_size: Pixels of the axis after resizing.
        name: Key of `FILTERS`.

    Returns:
        [out_size, in_size] float64. The result is cached: do not change it in place.

    Raises:
        ValueError: The filter is unknown, or a size is below 1.
    """
    if name not in FILTERS:
        raise ValueError(f"the filter must be one of {', '.join(FILTERS)}, not {name!r}")
    if in_size < 1 or out_size < 1:
        raise ValueError(f"cannot resize {in_size} pixels to {out_size}")
    kernel, radius = FILTERS[name]
    scale = in_size / out_size
    width = max(scale, 1.0)
    matrix = torch.zeros(out_size, in_size, dtype=torch.float64)
    for row in range(out_size):
        center = (row + 0.5) * scale
        first = max(int(center - radius * width + 0.5), 0)
        last = min(int(center + radius * width + 0.5), in_size)
        taps = [kernel((i - center + 0.5) / width) for i in range(first, last)]
        matrix[row, first:last] = torch.tensor(taps, dtype=torch.float64) / sum(taps)
    return matrix


def resize(images: Tensor, size: int, name: str = "lanczos") -> Tensor:
    """Resizes images to size x size as Pillow resizes float images; differentiable.

    Args:
        images: Images of a floating-point dtype, [N, C, H, W].
        size: Height and width of the result in pixels.
        name: Key of `FILTERS`.

    Returns:
        [N, C, size, size] in the dtype of `images`; `images` itself if no resizing is needed.

    Raises:
        ValueError: The filter is unknown, or a size is below 1.
    """
    height, width = images.shape[2:]
    if (height, width) == (size, size):
        return images
    rows, columns = (resize_matrix(n, size, name).to(images.device, images.dtype) for n in (height, width))
    return rows @ (images @ columns.t())
