"""From what a generator draws to what a teacher looks at: image size and class labels.

Generator and teacher need not match. A generator at 1024 pixels is refined by a teacher at 64 pixels that sees its
images reduced, differentiably, with the filter that the teacher's data set was made with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from refine.errors import UserError


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


@dataclass(frozen=True)
class Bridge:
    """How one generator's images and labels become one teacher's.

    Attributes:
        img_resolution: the teacher's.
        label_dim: the teacher's; 0: it gets no labels.
        resample: a key of `FILTERS`.
        class_map: the teacher's class for each class of the generator; None: the same numbers.
    """

    img_resolution: int
    label_dim: int
    resample: str = "lanczos"
    class_map: tuple[int, ...] | None = None

    def images(self, x: Tensor) -> Tensor:
        """[N, C, H, W] as drawn -> [N, C, R, R] as the teacher sees it; differentiable."""
        return resize(x, self.img_resolution, self.resample)

    def labels(self, c: Tensor) -> Tensor | None:
        """[N, c_dim] of the generator -> [N, label_dim] of the teacher, None for an unconditional teacher."""
        if self.label_dim == 0:
            return None
        if self.class_map is None:
            return c
        classes = torch.tensor(self.class_map, device=c.device)
        return torch.zeros(len(c), self.label_dim, dtype=c.dtype, device=c.device).index_add_(1, classes, c)


@dataclass(frozen=True)
class Shape:
    """What a bridge has to know of a network: pixels, channels and classes (0 = unconditional)."""

    img_resolution: int
    img_channels: int
    num_classes: int


def make_bridge(
    generator: Shape, teacher: Shape, resample: str = "lanczos", class_map: Sequence[int] | None = None
) -> Bridge:
    """The bridge between two networks.

    Raises:
        UserError: the two cannot be joined, and what to do instead.
    """
    if resample not in FILTERS:
        raise UserError(f"The resampling filter must be one of {', '.join(FILTERS)}, not {resample!r}.")
    if generator.img_channels != teacher.img_channels:
        raise UserError(
            f"The generator draws {generator.img_channels} channels and the teacher sees {teacher.img_channels}: "
            "take a teacher that was trained on images with the generator's channels."
        )
    if teacher.img_resolution > generator.img_resolution:
        raise UserError(
            f"The teacher sees {teacher.img_resolution} pixels and the generator draws {generator.img_resolution}: "
            "take a teacher of the generator's resolution or below, since enlarged images look blurred to it."
        )
    if teacher.num_classes and not generator.num_classes:
        raise UserError(
            f"The teacher knows {teacher.num_classes} classes and the generator none, so it cannot be told what an "
            "image shows: take an unconditional teacher."
        )
    if class_map is not None:
        _check_class_map(class_map, generator.num_classes, teacher.num_classes)
    elif teacher.num_classes and teacher.num_classes != generator.num_classes:
        raise UserError(
            f"The generator has {generator.num_classes} classes and the teacher {teacher.num_classes}: say which "
            "of the teacher's classes each of the generator's is, with --class-map, or take an unconditional teacher."
        )
    return Bridge(
        teacher.img_resolution, teacher.num_classes, resample, None if class_map is None else tuple(class_map)
    )


def _check_class_map(class_map: Sequence[int], num_classes: int, num_teacher_classes: int) -> None:
    if not (num_classes and num_teacher_classes):
        raise UserError("--class-map needs a generator and a teacher that both have classes; leave it out.")
    if len(class_map) != num_classes:
        raise UserError(
            f"--class-map has {len(class_map)} entries and the generator {num_classes} classes: give one for each."
        )
    wrong = [entry for entry in class_map if not 0 <= entry < num_teacher_classes]
    if wrong:
        raise UserError(f"--class-map names class {wrong[0]}; the teacher's are 0 to {num_teacher_classes - 1}.")
