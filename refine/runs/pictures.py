"""Grids of a run's pictures: fakes at the same latents in each, and real images of the same classes beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from refine.files.dataset import ImageDataset
from refine.files.image_grid import grid_shape, save_grid
from refine.files.matched_images import matching_images
from refine.metrics.resolve import dataset_path

MOST_ON_CPU = 240  # images of a grid where drawing them takes seconds


@dataclass(frozen=True)
class PictureGrid:
    """Grid of a run's pictures.

    Attributes:
        columns, rows: Images across and down.
        num_classes: Classes that take turns from column to column; 0: There are none.
    """

    columns: int
    rows: int
    num_classes: int = 0

    @classmethod
    def of(cls, resolution: int, num_classes: int, device: torch.device) -> PictureGrid:
        """The grid of the StyleGAN suite, or a smaller one on a CPU.

        Args:
            resolution: Pixels along either axis of the generator's images.
            num_classes: Width of its labels.
            device: Device that draws.
        """
        columns, rows = grid_shape(resolution, num_classes, MOST_ON_CPU if device.type == "cpu" else None)
        return cls(columns, rows, num_classes)

    @property
    def count(self) -> int:
        """Number of images."""
        return self.columns * self.rows

    @property
    def column_names(self) -> list[str]:
        """The class of each column, as `labels_in_turn(count, num_classes, columns)` has it."""
        return [str(column % self.num_classes) for column in range(self.columns)] if self.num_classes > 1 else []

    def classes(self) -> list[int | None]:
        """The class in each place, row by row; None without classes."""
        in_row = [column % self.num_classes if self.num_classes else None for column in range(self.columns)]
        return in_row * self.rows

    def save(self, path: Path, images: Tensor, title: str) -> None:
        """Writes images as a captioned PNG.

        Args:
            path: PNG file.
            images: uint8 [N, C, R, R], or floating point in [-1, 1]; row by row.
            title: Caption.

        Raises:
            UserError: The file cannot be written.
        """
        if images.is_floating_point():
            images = (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        save_grid(path, images.cpu().numpy(), self.columns, title, self.column_names)


def real_images(data: str, classes: Sequence[int | None], seed: int = 0) -> Tensor:
    """Random real images, uint8 [N, C, R, R], each of the class that is wanted in its place.

    Places whose class the data set lacks are white.

    Args:
        data: Data set: path or zoo name.
        classes: Wanted classes, as `PictureGrid.classes` lists them.
        seed: Seed of the choice.

    Raises:
        UserError: The data set cannot be read.
    """
    return torch.from_numpy(matching_images(ImageDataset(dataset_path(data)), classes, seed))
