"""Bridge from the generator's images and labels to the teacher's: image size and classes.

Generator and teacher need not match. A generator at 1024 pixels is refined by a teacher at 64 pixels that sees its
images reduced, differentiably, with the filter that the teacher's data set was made with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine.contracts import Denoiser, Generator
from refine.errors import UserError
from refine.pair.resize import FILTERS, resize


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


def make_bridge(
    generator: Generator, teacher: Denoiser, resample: str = "lanczos", class_map: Sequence[int] | None = None
) -> Bridge:
    """The bridge between two networks.

    Args:
        generator: Its `img_resolution`, `img_channels`, and `c_dim` are looked at.
        teacher: Its `img_resolution`, `img_channels`, and `label_dim` are looked at.
        resample: A key of `resize.FILTERS`.
        class_map: Class of the teacher for each class of the generator; None for the same numbers.

    Raises:
        UserError: The two cannot be joined; the sentence says what to do instead.
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
    if teacher.label_dim and not generator.c_dim:
        raise UserError(
            f"The teacher knows {teacher.label_dim} classes and the generator none, so it cannot be told what an "
            "image shows: take an unconditional teacher."
        )
    if class_map is not None:
        _check_class_map(class_map, generator.c_dim, teacher.label_dim)
    elif teacher.label_dim and teacher.label_dim != generator.c_dim:
        raise UserError(
            f"The generator has {generator.c_dim} classes and the teacher {teacher.label_dim}: say which "
            "of the teacher's classes each of the generator's is, with --class-map, or take an unconditional teacher."
        )
    return Bridge(teacher.img_resolution, teacher.label_dim, resample, None if class_map is None else tuple(class_map))


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
