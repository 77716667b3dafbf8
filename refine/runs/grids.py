"""Image grids of a run: generated images at the same latents all along, and real images of the same classes."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from refine.contracts import Generator
from refine.files.image_grid import grid_shape, save_grid
from refine.files.images import to_uint8
from refine.networks.sampling import labels_in_turn
from refine.runs.evaluation import real_images
from refine.runs.folder import RunFolder
from refine.runs.tracker import Trackers
from refine.runtime import distributed
from refine.runtime.random import stream_generator

MAX_IMAGES_ON_CPU, MAX_PIXELS_ON_CPU = 240, 2**21  # limits of a grid on a CPU, where generating is slow
BATCH = 24  # images per pass


class Grids:
    """Grids of one run. Only rank 0 draws and saves.

    Args:
        folder: Folder of the run.
        trackers: Trackers that show the grids, too.
        generator: Generator to draw from, on its device.
        seed: Seed of the latents and of the choice of real images.
    """

    def __init__(self, folder: RunFolder, trackers: Trackers, generator: Generator, seed: int) -> None:
        self.folder, self.trackers, self.generator, self.seed = folder, trackers, generator, seed
        self.device = next(generator.module.parameters()).device
        most = None
        if self.device.type != "cuda":
            most = max(min(MAX_IMAGES_ON_CPU, MAX_PIXELS_ON_CPU // generator.img_resolution**2), 1)
        self.columns, self.rows = grid_shape(generator.img_resolution, generator.c_dim, most)

    @property
    def column_names(self) -> list[str]:
        """Classes of the columns; empty for a generator without classes."""
        num_classes = self.generator.c_dim
        return [str(column % num_classes) for column in range(self.columns)] if num_classes else []

    @torch.no_grad()
    def draw(self) -> Tensor | None:
        """Generates the images of a grid: the same latents each time, one class per column.

        Returns:
            Images, [N, C, R, R], on the CPU; None except on rank 0.
        """
        if not distributed.is_rank0():
            return None
        count = self.columns * self.rows
        z = torch.randn(count, *self.generator.z_shape, generator=stream_generator(self.seed, "grid", 0))
        c = labels_in_turn(count, self.generator.c_dim, self.columns)
        pairs = zip(z.split(BATCH), c.split(BATCH), strict=True)
        drawn = [self.generator(z.to(self.device), c.to(self.device), noise_mode="const") for z, c in pairs]
        return torch.cat([output.images.cpu() for output in drawn])

    def save_fakes(self, name: str, images: Tensor | None, title: str, cur_nimg: int) -> None:
        """Saves generated images as a PNG.

        Args:
            name: Name of the file.
            images: Result of `draw`.
            title: Caption of the picture.
            cur_nimg: Images of generator updates so far.
        """
        if images is not None:
            path = self.folder.path / name
            save_grid(path, to_uint8(images).numpy(), self.columns, title, self.column_names)
            self.trackers.add_picture("fakes", path, cur_nimg, time.time())

    def save_reals(self, data: str | None) -> None:
        """Saves images of a data set as `reals.png`, with the same classes in its columns as the fakes.

        Args:
            data: Data set; None for none.
        """
        if data is None or not distributed.is_rank0():
            return
        num_classes = self.generator.c_dim
        places = range(self.columns * self.rows)
        classes = [place % self.columns % num_classes if num_classes else None for place in places]
        path = self.folder.path / "reals.png"
        save_grid(path, real_images(data, classes, self.seed), self.columns, "real images", self.column_names)
        self.trackers.add_picture("reals", path, 0, time.time())
