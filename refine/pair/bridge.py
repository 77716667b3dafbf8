"""Bridge from the generator's images and labels to the teacher's: image size and classes.

Generator and teacher need not match. A generator at 1024 pixels can be refined by a teacher at 64 pixels: the images
are downsampled, differentiably, with the filter that made the teacher's data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine.contracts import Denoiser, Generator
from refine.errors import OptionError, UserError
from refine.pair.resize import FILTERS, resize
from refine.runtime.text import counted


@dataclass(frozen=True)
class Bridge:
    """Conversion of a generator's images and labels to a teacher's.

    Attributes:
        img_resolution: Height and width of the teacher's images in pixels.
        label_dim: Width of the teacher's class labels; 0 for an unconditional teacher.
        resample: Key of `resize.FILTERS`.
        class_map: Teacher class of each generator class; None if both number their classes alike.
    """

    img_resolution: int
    label_dim: int
    resample: str = "lanczos"
    class_map: tuple[int, ...] | None = None

    def images(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] as generated -> [N, C, R, R] at the teacher's resolution; differentiable."""
        return resize(x, self.img_resolution, self.resample)

    def labels(self, c: Tensor) -> Tensor | None:
        """Labels [N, c_dim] of the generator -> [N, label_dim] of the teacher; None for an unconditional teacher."""
        if self.label_dim == 0:
            return None
        if self.class_map is None:
            return c
        classes = torch.tensor(self.class_map, device=c.device)
        return torch.zeros(len(c), self.label_dim, dtype=c.dtype, device=c.device).index_add_(1, classes, c)


def make_bridge(
    generator: Generator, teacher: Denoiser, resample: str = "lanczos", class_map: Sequence[int] | None = None
) -> Bridge:
    """Builds the bridge between two networks.

    Args:
        generator: Generator, of which `img_resolution`, `img_channels`, and `c_dim` matter.
        teacher: Teacher, of which `img_resolution`, `img_channels`, and `label_dim` matter.
        resample: Key of `resize.FILTERS`.
        class_map: Teacher class of each generator class; None if both number their classes alike.

    Raises:
        UserError: The filter is unknown, or channels, resolutions or classes of the two cannot be matched.
    """
    if resample not in FILTERS:
        raise UserError(f"The resampling filter must be one of {', '.join(FILTERS)}, not {resample!r}.")
    if generator.img_channels != teacher.img_channels:
        raise UserError(
            f"The generator makes images with {counted(generator.img_channels, 'channel')} and the teacher expects "
            f"{teacher.img_channels}: use a teacher trained on images with "
            f"{counted(generator.img_channels, 'channel')}."
        )
    if teacher.img_resolution > generator.img_resolution:
        raise UserError(
            f"The teacher works at {teacher.img_resolution} pixels and the generator at only "
            f"{generator.img_resolution}: use a teacher with at most the generator's resolution, because upsampled "
            "images look blurred to the teacher."
        )
    if teacher.label_dim and not generator.c_dim:
        raise UserError(
            f"The teacher has {counted(teacher.label_dim, 'class', 'classes')} and the generator has none: use an "
            "unconditional teacher."
        )
    if class_map is not None:
        _check_class_map(class_map, generator.c_dim, teacher.label_dim)
    elif teacher.label_dim and teacher.label_dim != generator.c_dim:
        raise OptionError(
            f"The generator has {counted(generator.c_dim, 'class', 'classes')} and the teacher {teacher.label_dim}: "
            "map each generator class to a teacher class with {class_map}, or use an unconditional teacher."
        )
    return Bridge(teacher.img_resolution, teacher.label_dim, resample, None if class_map is None else tuple(class_map))


def _check_class_map(class_map: Sequence[int], num_classes: int, num_teacher_classes: int) -> None:
    if not (num_classes and num_teacher_classes):
        raise OptionError("{class_map} needs a generator and a teacher that both have classes: leave it out.")
    if len(class_map) != num_classes:
        raise OptionError(
            f"{{class_map}} has {counted(len(class_map), 'entry', 'entries')} and the generator "
            f"{counted(num_classes, 'class', 'classes')}: give one entry for each class."
        )
    wrong = [entry for entry in class_map if not 0 <= entry < num_teacher_classes]
    if wrong:
        raise OptionError(
            f"{{class_map}} contains class {wrong[0]}, which the teacher does not have: "
            f"use classes 0 to {num_teacher_classes - 1}."
        )
