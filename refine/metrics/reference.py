"""What a generator is compared with: a data set, statistics of one, or images that the teacher draws."""

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
from refine.files.dataset import ImageDataset
from refine.files.decoding import read_batches
from refine.metrics import cache
from refine.metrics.batch_size import USUAL, BatchSize
from refine.metrics.collect import Tap, at_first, collect
from refine.metrics.detectors import Detector
from refine.metrics.metric import MetricSpec
from refine.metrics.moments import Moments
from refine.metrics.sampler import Labels, draw_labels, draw_latents, to_uint8


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
        dimension: of its features, where they are there already.
        ddof: of covariances, as whoever made the reference divides them.
    """

    name: str
    kind: str
    resolution: int | None = None
    num_channels: int | None = None
    labels: Labels | None = None
    suffix: str = ""
    dimension: int | None = None
    ddof: int = 0

    def check(self, spec: MetricSpec, detector: Detector) -> None:  # noqa: B027
        """Says early that this reference cannot give that metric.

        Raises:
            UserError: and what can.
        """

    def prepare(self, wanted: Sequence[tuple[Tap, MetricSpec]]) -> None:  # noqa: B027
        """Computes what several metrics will want of the same images in one go.

        Raises:
            UserError: its images cannot be read.
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

    batch: BatchSize

    def __init__(self) -> None:
        self._in_memory: dict[str, dict[str, np.ndarray]] = {}  # moments, and what the cache would not take

    @abstractmethod
    def _identity(self, spec: MetricSpec) -> dict[str, Any]:
        """What decides which images these are."""

    @abstractmethod
    def _numbers(self, spec: MetricSpec) -> range:
        """The numbers of the images that the metric takes."""

    @abstractmethod
    def _images(self, spec: MetricSpec, numbers: range, batch: BatchSize) -> Iterator[Tensor]: ...

    def prepare(self, wanted: Sequence[tuple[Tap, MetricSpec]]) -> None:
        """See `Reference.prepare`."""
        missing: dict[str, dict[Tap, MetricSpec]] = {}
        for tap, spec in wanted:
            key = self._key(tap, spec)
            if key not in self._in_memory and not at_first(lambda key=key: cache.exists(key)):  # type: ignore[misc]
                images = cache.key_of({**self._identity(spec), "count": len(self._numbers(spec))})
                missing.setdefault(images, {})[tap] = spec
        for specs in missing.values():
            self._compute(specs)

    def get(self, tap: Tap, spec: MetricSpec) -> Any:
        """See `Reference.get`; kept in the cache."""
        key = self._key(tap, spec)
        arrays = self._in_memory.get(key)
        if arrays is None:
            arrays = at_first(lambda: cache.load(key))
        if arrays is None:
            arrays = self._compute({tap: spec})[tap]
        if tap.keep == "moments":
            self._in_memory[key] = arrays
            return Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"])
        return arrays["rows"]

    def _key(self, tap: Tap, spec: MetricSpec) -> str:
        return cache.key_of(
            {
                **self._identity(spec),
                "count": len(self._numbers(spec)),
                "detector": tap.detector.sha256,
                "output": tap.output,
                "keep": tap.keep,
            }
        )

    def _compute(self, specs: Mapping[Tap, MetricSpec]) -> dict[Tap, dict[str, np.ndarray]]:
        """All taps of the same images in one go, into the cache."""
        spec = next(iter(specs.values()))
        title = f"reference {self.name}"
        values = collect(lambda n, b: self._images(spec, n, b), self._numbers(spec), list(specs), self.batch, title)
        computed = {}
        for tap, value in values.items():
            arrays = {"rows": value}
            if tap.keep == "moments":
                arrays = {"count": np.int64(value.count), "mean": value.mean, "scatter": value.scatter}
            key = self._key(tap, specs[tap])
            if not at_first(lambda key=key, arrays=arrays: cache.store(key, arrays)):  # type: ignore[misc]
                self._in_memory[key] = arrays
            computed[tap] = arrays
        return computed


class DatasetReference(_ImageReference):
    """A StyleGAN data set. Metrics called `_full` see all of it, others its first images, mirrored too if wanted."""

    kind = "data"

    def __init__(
        self, path: str, *, mirror: bool = False, batch: int | None = None, workers: int | None = None
    ) -> None:
        """Opens the data set.

        Args:
            path: ZIP or folder.
            mirror: legacy metrics see each image mirrored too.
            batch: images read at once.
            workers: processes that decode them; None: see `reading.read_batches`.

        Raises:
            UserError: it is none.
        """
        super().__init__()
        plain = ImageDataset(path)
        self.mirror, self.batch, self.workers = mirror, BatchSize(batch or USUAL), workers
        self.plain, self.mirrored = plain, ImageDataset(path, xflip=True) if mirror else plain
        self.path, self.name = plain.path, plain.name
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

    def _images(self, spec: MetricSpec, numbers: range, batch: BatchSize) -> Iterator[Tensor]:
        for images in read_batches(self._dataset(spec), numbers, batch.now, self.workers):
            yield torch.from_numpy(images)


class TeacherReference(_ImageReference):
    """Images that the teacher draws with the Heun sampler of EDM: a yardstick where there is no data."""

    kind, suffix = "teacher", "_teacher"

    def __init__(
        self, teacher: Teacher, device: torch.device, *, seed: int, num_images: int | None, batch: int | None = None
    ) -> None:
        """Prepares to draw.

        Args:
            teacher: the denoiser, on `device`.
            device: where to draw.
            seed: of the latents and labels.
            num_images: how many; None: as many as the metric takes of the generator.
            batch: images drawn at once; None: see `batches.BatchSize`.
        """
        super().__init__()
        self.teacher, self.device, self.seed, self.num_images = teacher, device, seed, num_images
        self.name = Path(teacher.spec).name
        self.resolution = int(teacher.network.img_resolution)
        self.num_channels = int(teacher.network.img_channels)
        self.batch = BatchSize.choose(batch, device, self.resolution)
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

    def _images(self, spec: MetricSpec, numbers: range, batch: BatchSize) -> Iterator[Tensor]:
        network: Any = self.teacher.network
        labels, shape = self._labels(), (int(network.img_channels), *2 * (int(network.img_resolution),))

        def draw(part: range) -> Tensor:
            latents = draw_latents(part, math.prod(shape), self.seed, "teacher latents").reshape(len(part), *shape)
            c = draw_labels(part, labels, int(network.label_dim), self.seed)
            images = heun_sample(
                network, latents.to(self.device), c.to(self.device) if network.label_dim else None, self.options
            )
            return to_uint8(images)

        return batch.parts(numbers, draw)

    def _labels(self) -> Labels | None:
        if self.teacher.class_map is None:
            return None
        classes = np.asarray(self.teacher.class_map, np.int64)
        return Labels(counts=np.bincount(classes, minlength=int(self.teacher.network.label_dim)))
