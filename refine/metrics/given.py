"""Images and samples to measure in place of a generator's: files, and what a teacher draws with its sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refine.contracts import Denoiser, GeneratorOutput
from refine.diffusion.sampler import HeunOptions, heun_sample
from refine.errors import UserError
from refine.files.arrays import open_dataset
from refine.files.dataset import ImageDataset
from refine.metrics import cache
from refine.metrics.collect import at_first
from refine.metrics.metric import Metric
from refine.pair.resize import resize


class GivenImages:
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

    def images(self, indices: range) -> Tensor:
        """Images by number, uint8 [N, C, R, R].

        Raises:
            UserError: One cannot be read.
        """
        if self.array is not None:
            return torch.from_numpy(self.array[indices.start : indices.stop]).permute(0, 3, 1, 2)
        assert self.dataset is not None
        return torch.from_numpy(np.concatenate([*self.dataset.batches(indices, max(len(indices), 1))]))

    def require(self, metrics: Sequence[Metric], fid_seeds: int) -> None:
        """Refuses metrics that take more images than there are, or something else than images.

        Raises:
            UserError: There is such a metric.
        """
        for metric in metrics:
            parts = metric.ranges(fid_seeds)
            if not parts:
                raise UserError(f"{metric.name} needs a generator, and {self.name} is images: leave it out.")
            if parts[-1].stop > self.count:
                raise UserError(
                    f"{metric.name} takes {parts[-1].stop:,} images, and {self.name} has {self.count:,}: ask for "
                    f"{metric.with_count(self.count // len(parts))}."
                )

    def __call__(self, *arguments: Any, **options: Any) -> GeneratorOutput:
        """Nothing: images cannot be drawn."""
        raise UserError(f"{self.name} is images, and no generator: give one.")

    def resolution_of(self, parameter: str) -> int | None:
        """None: there are no parameters."""
        return None

    def blocks(self) -> Sequence[nn.Module]:
        """Nothing: there is no network."""
        return ()

    def after_step(self, w_mean: Tensor | None) -> None:
        """Nothing: there is no network."""


@dataclass(frozen=True)
class GivenSampler:
    """Images by their number, as `sampler.Sampler` draws them.

    Attributes:
        given: The images.
        device: Device that they are for.
        resolution: Size that they are reduced to; None: as they are.
        resample: Filter for this, a key of `bridge.FILTERS`.
    """

    given: GivenImages
    device: torch.device
    resolution: int | None = None
    resample: str = "lanczos"

    def images(self, indices: range) -> Tensor:
        """Images number i for each of the indices, uint8 [N, C, R, R].

        Raises:
            UserError: One cannot be read.
        """
        images = self.given.images(indices).to(self.device)
        if self.resolution is None:
            return images
        resized = resize(images.float(), self.resolution, self.resample)
        return resized.round().clamp(0, 255).byte()


class TeacherSamples:
    """A teacher as a generator: images of noise go through EDM's Heun sampler; see `contracts.Generator`.

    Args:
        teacher: Denoiser on the device of the measurement.
        options: Options of the sampler; None for the defaults.

    Attributes:
        about: Entries for a row's provenance.
    """

    takes_noise_mode = False

    def __init__(self, teacher: Denoiser, options: HeunOptions | None = None) -> None:
        self.teacher, self.options = teacher, options or HeunOptions()
        self.module = teacher.module
        self.c_dim, self.img_channels = int(teacher.label_dim), int(teacher.img_channels)
        self.img_resolution = int(teacher.img_resolution)
        self.z_shape = (self.img_channels, self.img_resolution, self.img_resolution)
        self.about = {"sampler": f"Heun, {self.options.num_steps} steps"}

    def __call__(
        self,
        z: Tensor,
        c: Tensor,
        noise_mode: str = "random",
        truncation_psi: float = 1.0,
        force_fp32: bool = False,
    ) -> GeneratorOutput:
        """Samples of standard normal noise z [N, C, R, R] and labels c [N, c_dim].

        Raises:
            UserError: Truncation is asked for, which a teacher does not have.
        """
        if truncation_psi != 1:
            raise UserError(f"A teacher has no truncation, and {truncation_psi} was asked for: use 1.")
        images = heun_sample(self.teacher, z, c if self.c_dim else None, self.options)
        return GeneratorOutput(images.float(), None)

    def resolution_of(self, parameter: str) -> int | None:
        """None: a teacher is not trained."""
        return None

    def blocks(self) -> Sequence[nn.Module]:
        """Blocks of the teacher."""
        return self.teacher.blocks()

    def after_step(self, w_mean: Tensor | None) -> None:
        """Nothing: a teacher is not trained."""
