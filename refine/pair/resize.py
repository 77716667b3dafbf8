"""Resizing as Pillow does it, differentiable.

Data sets were made with Pillow: a teacher sees images that were reduced with its filters.
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


FILTERS: dict[str, tuple[Callable[[float], float], float]] = {  # name -> (kernel, its radius in output pixels)
    "lanczos": (_lanczos, 3.0),
    "bicubic": (_bicubic, 2.0),
    "box": (_box, 0.5),
}


@lru_cache(maxsize=32)
def resize_matrix(in_size: int, out_size: int, name: str = "lanczos") -> Tensor:
    """The matrix [out_size, in_size] that resizes one axis as Pillow's `Image.resize` does, in float64.

    Each row holds the kernel, widened by the reduction factor and centred on the output pixel, cut at the image's
    border and normalised to sum 1.

    Raises:
        ValueError: an unknown filter or a size below 1.
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
        centre = (row + 0.5) * scale
        first = max(int(centre - radius * width + 0.5), 0)
        last = min(int(centre + radius * width + 0.5), in_size)
        taps = [kernel((i - centre + 0.5) / width) for i in range(first, last)]
        matrix[row, first:last] = torch.tensor(taps, dtype=torch.float64) / sum(taps)
    return matrix


def resize(images: Tensor, size: int, name: str = "lanczos") -> Tensor:
    """Resizes square or other images to size x size as Pillow does to float images; differentiable.

    Args:
        images: [N, C, H, W], floating point.
        size: pixels of the result along both axes.
        name: a key of `FILTERS`.

    Returns:
        [N, C, size, size] of the same dtype; the images themselves where they have that size already.
    """
    height, width = images.shape[2:]
    if (height, width) == (size, size):
        return images
    rows, columns = (resize_matrix(n, size, name).to(images.device, images.dtype) for n in (height, width))
    return rows @ (images @ columns.t())
