"""Images in files or arrays in place of a generator's, so that whatever any program has drawn can be measured."""

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
from refine.files.arrays import open_dataset
from refine.files.dataset import ImageDataset
from refine.files.images import to_uint8
from refine.metrics import cache
from refine.metrics.collect import at_first
from refine.metrics.metric import Metric
from refine.pair.resize import resize


class StoredImages:
    """Images that are there already, where a generator is expected; see `contracts.Generator`.

    Args:
        images: Folder, ZIP or .npz file, or uint8 [N, H, W, C], C = 1 or 3.

    Attributes:
        dataset: The images.
        count: Number of them.
        about: Entries for a row's provenance.

    Raises:
        UserError: They cannot be read, or are not square images of one size.
    """

    z_shape: tuple[int, ...] = (1,)
    c_dim = 0
    takes_noise_mode = False

    def __init__(self, images: str | Path | np.ndarray) -> None:
        self.module = nn.Module()
        self.array: np.ndarray | None = None
        self.dataset: ImageDataset | None = None
        if isinstance(images, np.ndarray):
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or not len(images):
                raise UserError(f"Images are uint8 [N, H, W, C] with H = W, not {images.dtype} {list(images.shape)}.")
            self.array, self.name, self.count = images, "array", len(images)
            self.img_resolution, self.img_channels = images.shape[1], images.shape[3]
            self.about: dict[str, Any] = {"name": self.name}
        else:
            self.dataset = open_dataset(images)
            self.name, self.count = self.dataset.path.name, len(self.dataset)
            self.img_resolution, self.img_channels = self.dataset.resolution, self.dataset.num_channels
            sha256 = at_first(lambda: cache.remembered_sha256(self.dataset.files) if self.dataset else "")
            self.about = {"name": self.name, "sha256": sha256}
        if self.img_channels not in (1, 3):
            raise UserError(f"Images have 1 or 3 channels, not {self.img_channels}.")
        self.about["num_images"] = self.count

    def images(self, numbers: np.ndarray) -> Tensor:
        """Images by number, uint8 [N, C, R, R].

        Raises:
            UserError: One cannot be read.
        """
        if self.array is not None:
            return torch.from_numpy(self.array[numbers]).permute(0, 3, 1, 2)
        assert self.dataset is not None
        return torch.from_numpy(np.concatenate([*self.dataset.batches(numbers.tolist(), len(numbers))]))

    def require(self, metrics: Sequence[Metric], fid_seeds: int) -> None:
        """Refuses metrics that take more images than there are, or something else than images.

        Raises:
            UserError: There is such a metric.
        """
        for metric in metrics:
            parts = metric.ranges(fid_seeds)
            if not parts:
                raise UserError(f"{metric.name} needs a generator, and {self.name} holds images: leave it out.")
            if parts[-1].stop > self.count:
                raise UserError(
                    f"{metric.name} takes {parts[-1].stop:,} images, and {self.name} has {self.count:,}: ask for "
                    f"{metric.with_count(self.count // len(parts))}."
                )

    def __call__(self, *arguments: Any, **options: Any) -> GeneratorOutput:
        """Nothing: images cannot be drawn."""
        raise UserError(f"{self.name} holds images and no generator: choose a metric of images, such as fid.")

    def resolution_of(self, parameter: str) -> int | None:
        """None: there are no parameters."""
        return None

    def blocks(self) -> Sequence[nn.Module]:
        """Nothing: there is no network."""
        return ()

    def after_step(self, w_mean: Tensor | None) -> None:
        """Nothing: there is no network."""


@dataclass(frozen=True)
class StoredSampler:
    """Takes stored images by number: all of them in a random order, so that the first ones are of every kind.

    Attributes:
        stored: The images.
        device: Device that they are for.
        seed: Seed of the order.
        resolution: Size that images are reduced to; None: as they are.
        resample: Filter for this, a key of `bridge.FILTERS`.
    """

    stored: StoredImages
    device: torch.device
    seed: int = 0
    resolution: int | None = None
    resample: str = "lanczos"

    def images(self, indices: range) -> Tensor:
        """Images of these numbers, uint8 [N, C, R, R].

        Raises:
            UserError: An image cannot be read, or is of another size or kind than the first.
        """
        order = np.random.RandomState(self.seed).permutation(self.stored.count)
        images = self.stored.images(order[np.arange(indices.start, indices.stop) % len(order)]).to(self.device)
        if self.resolution is None:
            return images
        return to_uint8(resize(images.float() / 127.5 - 1, self.resolution, self.resample))
