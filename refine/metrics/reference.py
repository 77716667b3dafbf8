"""What a generator is compared with: a data set, statistics of one, or images that the teacher draws."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine import pickles
from refine.diffusion import Denoiser, HeunOptions, heun_sample
from refine.errors import UserError
from refine.metrics import cache
from refine.metrics.dataset import ImageDataset
from refine.metrics.detectors import Detector
from refine.metrics.features import Tap, at_first, collect
from refine.metrics.moments import Moments
from refine.metrics.registry import MetricSpec
from refine.metrics.sampler import Labels, draw_labels, draw_latents, to_uint8

log = logging.getLogger("refine")


@dataclass(frozen=True)
class Teacher:
    """A teacher as a yardstick, for `ref=teacher` and for finding its data set's statistics.

    Attributes:
        network: the denoiser, on the device of the measurement.
        spec: what the user called it: path, URL or zoo name.
        sha256: of its file.
        class_map: its class for each class of the generator; None: the same numbers.
    """

    network: Denoiser
    spec: str
    sha256: str
    class_map: tuple[int, ...] | None = None


class Reference(ABC):
    """What images are compared with.

    Attributes:
        name: for people.
        kind: "data", "statistics" or "teacher".
        resolution: of its images; None if not known.
        num_channels: of its images; None if not known.
        labels: what the generator's labels are drawn from; None: uniform.
        suffix: goes on the names of metrics.
        ddof: of covariances, as whoever made the reference divides them.
    """

    name: str
    kind: str
    resolution: int | None = None
    num_channels: int | None = None
    labels: Labels | None = None
    suffix: str = ""
    ddof: int = 0

    def check(self, spec: MetricSpec, detector: Detector) -> None:  # noqa: B027
        """Says early that this reference cannot give that metric.

        Raises:
            UserError: and what can.
        """

    @abstractmethod
    def get(self, tap: Tap, spec: MetricSpec) -> Any:
        """Its `Moments` or rows [N, D] for a tap, from as many images as the metric takes; at every process.

        Raises:
            UserError: its images cannot be read.
        """

    @abstractmethod
    def provenance(self, spec: MetricSpec) -> dict[str, Any]:
        """What a row says about it."""


class _ImageReference(Reference):
    """A reference that consists of images."""

    batch: int

    @abstractmethod
    def _identity(self, spec: MetricSpec) -> dict[str, Any]:
        """What decides which images these are."""

    @abstractmethod
    def _numbers(self, spec: MetricSpec) -> range:
        """The numbers of the images that the metric takes."""

    @abstractmethod
    def _images(self, spec: MetricSpec, numbers: range, batch: int) -> Iterator[Tensor]: ...

    def get(self, tap: Tap, spec: MetricSpec) -> Any:
        """See `Reference.get`; kept in the cache."""
        numbers = self._numbers(spec)
        key = cache.key_of(
            {
                **self._identity(spec),
                "count": len(numbers),
                "detector": tap.detector.sha256,
                "output": tap.output,
                "keep": tap.keep,
            }
        )
        arrays = at_first(lambda: cache.load(key))
        if arrays is None:
            title = f"reference {self.name}"
            value = collect(lambda n, b: self._images(spec, n, b), numbers, [tap], self.batch, title)[tap]
            arrays = {"rows": value}
            if tap.keep == "moments":
                arrays = {"count": np.int64(value.count), "mean": value.mean, "scatter": value.scatter}
            at_first(lambda: cache.store(key, arrays))
        if tap.keep == "moments":
            return Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"])
        return arrays["rows"]


class DatasetReference(_ImageReference):
    """A StyleGAN data set. Metrics called `_full` see all of it, others its first images, mirrored too if wanted."""

    kind = "data"

    def __init__(self, path: str, *, mirror: bool = False, batch: int = 64, workers: int = 2) -> None:
        """Opens the data set.

        Args:
            path: ZIP or folder.
            mirror: legacy metrics see each image mirrored too.
            batch: images read at once.
            workers: threads that decode them.

        Raises:
            UserError: it is none.
        """
        plain = ImageDataset(path)
        self.mirror, self.batch, self.workers = mirror, batch, workers
        self.plain, self.mirrored = plain, ImageDataset(path, xflip=True) if mirror else plain
        self.name = plain.name
        self.resolution, self.num_channels = plain.resolution, plain.num_channels
        self.labels = None if plain.raw_labels is None else Labels.of(plain.raw_labels)
        self.sha256 = at_first(lambda: cache.remembered_sha256(plain.path, plain.sha256))

    def provenance(self, spec: MetricSpec) -> dict[str, Any]:
        """See `Reference.provenance`."""
        count = len(self._numbers(spec))
        return {"kind": self.kind, "name": self.name, "sha256": self.sha256, "num_images": count}

    def _dataset(self, spec: MetricSpec) -> ImageDataset:
        return self.plain if spec.full else self.mirrored

    def _identity(self, spec: MetricSpec) -> dict[str, Any]:
        return {"data": self.sha256, "xflip": self._dataset(spec) is self.mirrored and self.mirror}

    def _numbers(self, spec: MetricSpec) -> range:
        size = len(self._dataset(spec))
        return range(size if spec.max_real is None else min(size, spec.max_real))

    def _images(self, spec: MetricSpec, numbers: range, batch: int) -> Iterator[Tensor]:
        for images in self._dataset(spec).batches(numbers, batch, self.workers):
            yield torch.from_numpy(images)


class TeacherReference(_ImageReference):
    """Images that the teacher draws with the Heun sampler of EDM: a yardstick where there is no data."""

    kind, suffix = "teacher", "_teacher"

    def __init__(
        self, teacher: Teacher, device: torch.device, *, seed: int, num_images: int | None, batch: int = 64
    ) -> None:
        """Prepares to draw.

        Args:
            teacher: the denoiser, on `device`.
            device: where to draw.
            seed: of the latents and labels.
            num_images: how many; None: as many as the metric takes of the generator.
            batch: images drawn at once.
        """
        self.teacher, self.device, self.seed, self.num_images, self.batch = teacher, device, seed, num_images, batch
        self.name = Path(teacher.spec).name
        self.resolution = int(teacher.network.img_resolution)
        self.num_channels = int(teacher.network.img_channels)
        self.options = HeunOptions()

    def provenance(self, spec: MetricSpec) -> dict[str, Any]:
        """See `Reference.provenance`."""
        sampler = f"Heun, {self.options.num_steps} steps"
        count = len(self._numbers(spec))
        return {
            "kind": self.kind,
            "name": self.name,
            "sha256": self.teacher.sha256,
            "num_images": count,
            "sampler": sampler,
            "seed": self.seed,
        }

    def _identity(self, spec: MetricSpec) -> dict[str, Any]:
        options = {name: repr(value) for name, value in asdict(self.options).items()}
        return {
            "teacher": self.teacher.sha256,
            "heun": options,
            "seed": self.seed,
            "class_map": self.teacher.class_map,
        }

    def _numbers(self, spec: MetricSpec) -> range:
        return range(self.num_images or spec.num_gen)

    def _images(self, spec: MetricSpec, numbers: range, batch: int) -> Iterator[Tensor]:
        network: Any = self.teacher.network
        labels, shape = self._labels(), (self.num_channels, self.resolution, self.resolution)
        width = int(np.prod([int(n or 0) for n in shape]))
        for first in range(0, len(numbers), batch):
            part = numbers[first : first + batch]
            latents = draw_latents(part, width, self.seed, "teacher latents").reshape(len(part), *shape)
            c = draw_labels(part, labels, int(network.label_dim), self.seed)
            images = heun_sample(
                network, latents.to(self.device), c.to(self.device) if network.label_dim else None, self.options
            )
            yield to_uint8(images)

    def _labels(self) -> Labels | None:
        if self.teacher.class_map is None:
            return None
        classes = np.asarray(self.teacher.class_map, np.int64)
        return Labels(counts=np.bincount(classes, minlength=int(self.teacher.network.label_dim)))


class StatisticsReference(Reference):
    """Mean and covariance of a data set's features in an .npz file, as EDM publishes them or `save_reference` writes.

    EDM's hold `mu` [D] and `sigma` [D, D], the latter divided by the number of images minus 1. Ours have `num_images`
    too, and what they were made with; and where they were asked for, features and labels.
    """

    kind = "statistics"

    def __init__(self, path: Path, *, name: str | None = None, resolution: int | None = None) -> None:
        """Reads the file.

        Args:
            path: the .npz file.
            name: what to call it; None: its file's name.
            resolution: of the images, where it is known from elsewhere.

        Raises:
            UserError: it is no such file.
        """
        self.path, self.name = path, name or path.name
        try:
            with np.load(path, allow_pickle=False) as npz:
                arrays = dict(npz)
            mean, sigma = np.asarray(arrays["mu"], np.float64), np.asarray(arrays["sigma"], np.float64)
        except KeyError as error:
            raise UserError(f"The reference {path} has no entry {error}: give an .npz with mu and sigma.") from error
        except Exception as error:  # zipfile, NumPy's header parser, and object arrays
            raise UserError(f"The reference {path} is no .npz file of numbers, or damaged: get it anew.") from error
        if mean.ndim != 1 or sigma.shape != 2 * mean.shape or not (np.isfinite(mean).all() and np.isfinite(sigma).all()):
            raise UserError(
                f"The reference {path} has a mu {list(mean.shape)} and a sigma {list(sigma.shape)}, which are no mean "
                "and covariance: get it anew."
            )
        self.sha256 = pickles.file_sha256(path)
        self.num_images = int(arrays["num_images"]) if "num_images" in arrays else None
        self.ddof = int(arrays["ddof"]) if "ddof" in arrays else 1
        self.detector_sha256 = str(arrays["detector_sha256"]) if "detector_sha256" in arrays else None
        self.features = arrays.get("features")
        # Without the number of images it does not matter which one is put in: it is divided out again.
        self._moments = Moments.from_covariance(mean, sigma, self.num_images or 2**31, ddof=1)
        in_name = re.search(r"(\d+)x\1(?!\d)", self.name)
        self.resolution = (
            resolution or (int(arrays["resolution"]) if "resolution" in arrays else None)
        ) or (int(in_name[1]) if in_name else None)
        self.num_channels = int(arrays["num_channels"]) if "num_channels" in arrays else None
        if "label_counts" in arrays:
            self.labels = Labels(counts=arrays["label_counts"].astype(np.int64))
        elif "label_vectors" in arrays:
            self.labels = Labels(vectors=arrays["label_vectors"].astype(np.float32))

    def check(self, spec: MetricSpec, detector: Detector) -> None:
        """See `Reference.check`."""
        if spec.kind in ("kid", "pr") and self.features is None:
            raise UserError(
                f"The reference {self.path} has a mean and a covariance and no features, which {spec.name} needs: give "
                "the data set with --data, or measure the FID only."
            )
        if not spec.full:
            raise UserError(
                f"The reference {self.path} stands for a whole data set, and {spec.name} takes its first images: ask "
                f"for {spec.name}_full."
            )
        if self.detector_sha256 is not None and self.detector_sha256 != detector.sha256:
            raise UserError(
                f"The reference {self.path} was made with another detector (sha256 {self.detector_sha256[:16]}...) than "
                f"{detector.path} ({detector.sha256[:16]}...): give that one with --detector, or another reference."
            )

    def get(self, tap: Tap, spec: MetricSpec) -> Any:
        """See `Reference.get`."""
        if tap.keep == "moments":
            return self._moments
        assert self.features is not None, "checked before"
        rows = self.features[: spec.max_real]
        return rows.astype(np.float16 if tap.keep == "half" else np.float32)

    def provenance(self, spec: MetricSpec) -> dict[str, Any]:
        """See `Reference.provenance`."""
        return {"kind": self.kind, "name": self.name, "sha256": self.sha256, "num_images": self.num_images}
