"""Images in files in place of a generator's, so that whatever any program has drawn can be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refine.contracts import GeneratorOutput
from refine.errors import UserError
from refine.files.dataset import ImageDataset
from refine.files.images import to_uint8
from refine.metrics.metric import Metric
from refine.pair.resize import resize


class StoredImages:
    """Images of a ZIP or folder, in the place of a generator without classes; see `contracts.Generator`.

    Args:
        path: ZIP or folder of square images, all gray or all RGB.

    Raises:
        UserError: There are no images, or the first one cannot be used.
    """

    z_shape, c_dim, takes_noise_mode = (0,), 0, False

    def __init__(self, path: str | Path) -> None:
        self.dataset, self.module = ImageDataset(path), nn.Module()
        self.img_resolution, self.img_channels = self.dataset.resolution, self.dataset.num_channels

    def __call__(self, *args: Any, **options: Any) -> GeneratorOutput:
        """Nothing: images in files belong to no latents.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.dataset.path} holds images and no generator: choose a metric of images, such as fid.")

    def resolution_of(self, parameter: str) -> int | None:
        """None: there are no layers."""
        return None

    def blocks(self) -> Sequence[nn.Module]:
        """Nothing: there are no blocks."""
        return ()

    def after_step(self, w_mean: Tensor | None) -> None:
        """Nothing: there are no statistics."""

    def check(self, metric: Metric, fid_seeds: int) -> None:
        """Refuses a metric of more images than there are.

        Raises:
            UserError: There are fewer.
        """
        needed = max((part.stop for part in metric.ranges(fid_seeds)), default=0)
        if needed > len(self.dataset):
            raise UserError(
                f"{metric.name} needs {needed:,} images, and {self.dataset.path} has {len(self.dataset):,}: name a "
                f"metric of at most as many, such as fid{len(self.dataset) // fid_seeds}_full."
            )

    def provenance(self) -> dict[str, Any]:
        """Name, SHA-256 and number of the images, for the provenance of rows."""
        return {"name": self.dataset.name, "sha256": self.dataset.sha256(), "num_images": len(self.dataset)}


@dataclass(frozen=True)
class StoredSampler:
    """Takes stored images by number: all of them in a random order, so that the first ones are of every kind.

    Attributes:
        stored: The images.
        seed: Seed of the order.
        resolution: Size that images are reduced to; None: as they are.
        resample: Filter for this, a key of `bridge.FILTERS`.
    """

    stored: StoredImages
    seed: int = 0
    resolution: int | None = None
    resample: str = "lanczos"

    def images(self, indices: range) -> Tensor:
        """Images of these numbers, uint8 [N, C, R, R].

        Raises:
            UserError: An image cannot be read, or is of another size or kind than the first.
        """
        dataset = self.stored.dataset
        order = np.random.RandomState(self.seed).permutation(len(dataset))
        images = torch.from_numpy(np.stack([dataset.image(int(order[index % len(order)])) for index in indices]))
        if self.resolution is None:
            return images
        return to_uint8(resize(images.float() / 127.5 - 1, self.resolution, self.resample))
