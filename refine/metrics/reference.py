"""References of a metric: the images of a data set, or images that the teacher draws."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.contracts import Denoiser
from refine.diffusion.sampler import HeunOptions, heun_sample
from refine.files.arrays import open_dataset
from refine.files.dataset import ImageDataset
from refine.files.decoding import read_batches
from refine.files.images import require_finite, to_uint8
from refine.metrics import cache
from refine.metrics.batch_size import USUAL, BatchSize
from refine.metrics.collect import at_first, collect
from refine.metrics.detectors import Detector
from refine.metrics.metric import FeatureSpec, Metric, too_few
from refine.metrics.moments import Moments
from refine.metrics.sampler import Labels, draw_labels, draw_latents


@dataclass(frozen=True)
class Teacher:
    """A teacher as a reference, for `ref=teacher` and for finding its data set's statistics.

    Attributes:
        network: Denoiser, on the device of the measurement.
        spec: Name that the user gave it by: path, URL or zoo name.
        sha256: SHA-256 of its file.
        class_map: Its class for each class of the generator; None: the same numbers.
        conditions: What decides its images besides its file, as text; see `pair.conditions`.
    """

    network: Denoiser
    spec: str
    sha256: str
    class_map: tuple[int, ...] | None = None
    conditions: str = ""


class Reference(ABC):
    """Images that the generator's are compared with.

    Attributes:
        name: Name for people.
        kind: "data", "statistics" or "teacher".
        resolution: Pixels of its images along an axis; None if unknown.
        num_channels: Channels of its images; None if unknown.
        labels: Distribution of labels for the generator; None: uniform.
        suffix: End of the names of metrics that compare with it.
        ddof: Covariances are divided by the number of features minus this, as whoever made the reference does.
        notes: Notes for the user, one sentence each.
    """

    name: str
    kind: str
    resolution: int | None = None
    num_channels: int | None = None
    labels: Labels | None = None
    suffix: str = ""
    ddof: int = 0
    notes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Its name in messages, with the path if it is a file."""
        return str(getattr(self, "path", self.name))

    def dimension_for(self, metric: Metric) -> int | None:
        """Dimension of the features that it has for a metric; None if they are yet to be computed.

        Raises:
            UserError: It has the features of another detector.
        """
        return None

    @abstractmethod
    def check(self, metric: Metric, detector: Detector) -> None:
        """Refuses early a metric that cannot be computed with this reference.

        Raises:
            UserError: It cannot.
        """

    def prepare(self, wanted: Sequence[tuple[FeatureSpec, Metric]]) -> None:  # noqa: B027
        """Computes in one pass the features that several metrics will want of the same images.

        Raises:
            UserError: An image cannot be read or drawn.
        """

    @abstractmethod
    def get(self, spec: FeatureSpec, metric: Metric) -> Any:
        """Its `Moments` or rows [N, D], from as many images as the metric takes; the same at every process.

        Raises:
            UserError: An image cannot be read or drawn.
        """

    @abstractmethod
    def provenance(self, metric: Metric) -> dict[str, Any]:
        """Its entry in a row's provenance."""


class _ImageReference(Reference):
    """A reference that consists of images; their features are kept in the cache."""

    batch: BatchSize

    def __init__(self) -> None:
        self._in_memory: dict[str, dict[str, np.ndarray]] = {}  # moments, and what the cache could not store

    @abstractmethod
    def _identity(self, metric: Metric) -> dict[str, Any]:
        """Everything that decides which images these are."""

    @abstractmethod
    def _numbers(self, metric: Metric) -> range:
        """Numbers of the images that the metric takes."""

    @abstractmethod
    def _images(self, metric: Metric, numbers: range, batch: BatchSize) -> Iterator[Tensor]: ...

    def check(self, metric: Metric, detector: Detector) -> None:
        """See `Reference.check`."""
        count = len(self._numbers(metric))
        if count < metric.least_images:
            raise too_few(metric.name, metric.least_images, self.where, count)

    def prepare(self, wanted: Sequence[tuple[FeatureSpec, Metric]]) -> None:
        """See `Reference.prepare`."""
        missing: dict[str, dict[FeatureSpec, Metric]] = {}
        for spec, metric in wanted:
            key = self._key(spec, metric)
            if key not in self._in_memory and not at_first(lambda key=key: cache.exists(key)):  # type: ignore[misc]
                images = cache.key_of({**self._identity(metric), "count": len(self._numbers(metric))})
                missing.setdefault(images, {})[spec] = metric
        for specs in missing.values():
            self._compute(specs)

    def get(self, spec: FeatureSpec, metric: Metric) -> Any:
        """See `Reference.get`."""
        key = self._key(spec, metric)
        arrays = self._in_memory.get(key)
        if arrays is None:
            arrays = at_first(lambda: cache.load(key))
        if arrays is None:
            arrays = self._compute({spec: metric})[spec]
        if spec.keep == "moments":
            self._in_memory[key] = arrays
            return Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"])
        return arrays["rows"]

    def _key(self, spec: FeatureSpec, metric: Metric) -> str:
        return cache.key_of(
            {
                **self._identity(metric),
                "count": len(self._numbers(metric)),
                "detector": spec.detector.sha256,
                "output": spec.output,
                "keep": spec.keep,
            }
        )

    def _compute(self, specs: Mapping[FeatureSpec, Metric]) -> dict[FeatureSpec, dict[str, np.ndarray]]:
        """All features of the same images in one pass, into the cache."""
        metric = next(iter(specs.values()))
        title = f"reference {self.name}"
        values = collect(lambda n, b: self._images(metric, n, b), self._numbers(metric), list(specs), self.batch, title)
        computed = {}
        for spec, value in values.items():
            arrays = {"rows": value}
            if spec.keep == "moments":
                arrays = {"count": np.int64(value.count), "mean": value.mean, "scatter": value.scatter}
            key = self._key(spec, specs[spec])
            if not at_first(lambda key=key, arrays=arrays: cache.store(key, arrays)):  # type: ignore[misc]
                self._in_memory[key] = arrays
            computed[spec] = arrays
        return computed


class DatasetReference(_ImageReference):
    """A StyleGAN data set, or images of an .npz file.

    Metrics with `_full` see all of it, others its first images, on request mirrored too.
    """

    kind = "data"

    def __init__(
        self, path: str, *, mirror: bool = False, batch: int | None = None, workers: int | None = None
    ) -> None:
        """Opens the data set.

        Args:
            path: ZIP or folder, or .npz.
            mirror: Show each image mirrored too, to legacy metrics.
            batch: Images read per pass.
            workers: Processes that decode; None: see `decoding.read_batches`.

        Raises:
            UserError: It is not a data set, or cannot be read.
        """
        super().__init__()
        plain = open_dataset(path)
        self.mirror, self.batch, self.workers = mirror, BatchSize(batch or USUAL), workers
        self.plain, self.mirrored = plain, open_dataset(path, xflip=True) if mirror else plain
        self.path, self.name = plain.path, plain.name
        self.resolution, self.num_channels = plain.resolution, plain.num_channels
        self.labels = None if plain.raw_labels is None else Labels.of(plain.raw_labels)
        self.notes = plain.notes
        self.sha256 = at_first(lambda: cache.remembered_sha256(plain.files))

    def provenance(self, metric: Metric) -> dict[str, Any]:
        """See `Reference.provenance`."""
        count = len(self._numbers(metric))
        return {"kind": self.kind, "name": self.name, "sha256": self.sha256, "num_images": count}

    def images_at(self, numbers: Sequence[int], metric: Metric) -> Tensor:
        """Images by their numbers among those that a metric takes, uint8 [N, C, H, W].

        Raises:
            UserError: An image cannot be read.
        """
        return torch.from_numpy(np.stack([self._dataset(metric).image(number) for number in numbers]))

    def _dataset(self, metric: Metric) -> ImageDataset:
        return self.plain if metric.full else self.mirrored

    def _identity(self, metric: Metric) -> dict[str, Any]:
        return {"data": self.sha256, "xflip": self._dataset(metric) is self.mirrored and self.mirror}

    def _numbers(self, metric: Metric) -> range:
        size = len(self._dataset(metric))
        return range(size if metric.max_real is None else min(size, metric.max_real))

    def _images(self, metric: Metric, numbers: range, batch: BatchSize) -> Iterator[Tensor]:
        for images in read_batches(self._dataset(metric), numbers, batch.now, self.workers):
            yield torch.from_numpy(images)


class TeacherReference(_ImageReference):
    """Images that the teacher draws with EDM's Heun sampler: a reference without data."""

    kind, suffix = "teacher", "_teacher"

    def __init__(
        self, teacher: Teacher, device: torch.device, *, seed: int, num_images: int | None, batch: int | None = None
    ) -> None:
        """Prepares to draw.

        Args:
            teacher: Teacher on `device`.
            device: Device to draw on.
            seed: Seed of latents and labels.
            num_images: Number of images; None: as many as the metric takes of the generator.
            batch: Images drawn per pass; None: see `batch_size.BatchSize`.
        """
        super().__init__()
        self.teacher, self.device, self.seed, self.num_images = teacher, device, seed, num_images
        self.name = Path(teacher.spec).name
        self.resolution = int(teacher.network.img_resolution)
        self.num_channels = int(teacher.network.img_channels)
        self.batch = BatchSize.choose(batch, device, self.resolution)
        self.options = HeunOptions()

    def provenance(self, metric: Metric) -> dict[str, Any]:
        """See `Reference.provenance`."""
        sampler = f"Heun, {self.options.num_steps} steps"
        count = len(self._numbers(metric))
        return {
            "kind": self.kind,
            "name": self.name,
            "sha256": self.teacher.sha256,
            "num_images": count,
            "sampler": sampler,
            "seed": self.seed,
            **self._conditions(),
        }

    def _identity(self, metric: Metric) -> dict[str, Any]:
        options = {name: repr(value) for name, value in asdict(self.options).items()}
        return {
            "teacher": self.teacher.sha256,
            "heun": options,
            "seed": self.seed,
            "class_map": self.teacher.class_map,
            **self._conditions(),
        }

    def _conditions(self) -> dict[str, str]:
        return {"conditions": self.teacher.conditions} if self.teacher.conditions else {}

    def _numbers(self, metric: Metric) -> range:
        return range(self.num_images or metric.num_gen)

    def _images(self, metric: Metric, numbers: range, batch: BatchSize) -> Iterator[Tensor]:
        network: Any = self.teacher.network
        labels, shape = self._labels(), (int(network.img_channels), *2 * (int(network.img_resolution),))

        def draw(part: range) -> Tensor:
            latents = draw_latents(part, math.prod(shape), self.seed, "teacher latents").reshape(len(part), *shape)
            c = draw_labels(part, labels, int(network.label_dim), self.seed)
            images = heun_sample(
                network, latents.to(self.device), c.to(self.device) if network.label_dim else None, self.options
            )
            require_finite(images, f"The teacher {self.teacher.spec}", "download it again, or give another reference")
            return to_uint8(images)

        return batch.parts(numbers, draw)

    def _labels(self) -> Labels | None:
        if self.teacher.class_map is None:
            return None
        classes = np.asarray(self.teacher.class_map, np.int64)
        return Labels(counts=np.bincount(classes, minlength=int(self.teacher.network.label_dim)))
