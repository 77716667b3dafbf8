"""Grids of a run's pictures: fakes at fixed latents, and real images of the same classes."""

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

MOST_ON_CPU = 240  # largest number of images in a grid on a CPU, where generating is slow


@dataclass(frozen=True)
class PictureGrid:
    """Grid of a run's pictures.

    Attributes:
        columns: Images per row.
        rows: Images per column.
        num_classes: Number of classes, which cycle through the columns; 0 for none.
    """

    columns: int
    rows: int
    num_classes: int = 0

    @classmethod
    def of(cls, resolution: int, num_classes: int, device: torch.device) -> PictureGrid:
        """Grid of the StyleGAN suite's size, or smaller on a CPU.

        Args:
            resolution: Height and width of an image in pixels.
            num_classes: Number of the generator's classes; 0 for none.
            device: Device of the generator.
        """
        columns, rows = grid_shape(resolution, num_classes, MOST_ON_CPU if device.type == "cpu" else None)
        return cls(columns, rows, num_classes)

    @property
    def count(self) -> int:
        """Number of images."""
        return self.columns * self.rows

    @property
    def column_names(self) -> list[str]:
        """Class of each column, as in `labels_in_turn(count, num_classes, columns)`."""
        return [str(column % self.num_classes) for column in range(self.columns)] if self.num_classes > 1 else []

    def classes(self) -> list[int | None]:
        """Class at each place, row by row; None without classes."""
        in_row = [column % self.num_classes if self.num_classes else None for column in range(self.columns)]
        return in_row * self.rows

    def save(self, path: Path, images: Tensor, title: str) -> None:
        """Writes images as a captioned PNG.

        Args:
            path: PNG file to write.
            images: Images row by row, [N, C, R, R], uint8 or floating point in [-1, 1].
            title: Caption.

        Raises:
            UserError: The file cannot be written.
        """
        if images.is_floating_point():
            images = (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        save_grid(path, images.cpu().numpy(), self.columns, title, self.column_names)


def real_images(data: str, classes: Sequence[int | None], seed: int = 0) -> Tensor:
    """Random real images of given classes, uint8 [N, C, R, R]; white if the data set lacks the class.

    Args:
        data: Path or zoo name of the data set.
        classes: Class at each place, as in `PictureGrid.classes`.
        seed: Seed of the choice.

    Raises:
        UserError: The data set cannot be read.
    """
    return torch.from_numpy(matching_images(ImageDataset(dataset_path(data)), classes, seed))
