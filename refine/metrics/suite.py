"""Suite: metrics, detectors and a reference, ready to measure one generator after another."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from refine.errors import UserError
from refine.metrics.batch_size import BatchSize
from refine.metrics.collect import at_all, at_first
from refine.metrics.detectors import Detector
from refine.metrics.drawn import DrawnImages
from refine.metrics.metric import Measured, Metric, Results, parse_metric
from refine.metrics.options import MetricOptions
from refine.metrics.reference import Reference, Teacher
from refine.metrics.resolve import choose_reference, fit, fit_labels, labels_source, load_detectors
from refine.metrics.sampler import Labels, Sampler, for_detector
from refine.metrics.stored_images import StoredImages, StoredSampler
from refine.networks.plain_module import as_contract
from refine.runtime import distributed
from refine.runtime.text import format_time

log = logging.getLogger("refine")

# (generator, snapshot's file name) -> rows of metric-<name>.jsonl. All processes call it and get the same rows.
Measure = Callable[[torch.nn.Module, str], Sequence[dict[str, Any]]]


def make_measure(
    options: MetricOptions, generator: Any, device: torch.device, teacher: Teacher | None = None
) -> Measure:
    """Gets detectors and the reference ready, so that whatever cannot work is known before a run begins.

    All processes call this with the same arguments.

    Args:
        options: Options of the measurement.
        generator: Any of the generators to come, to see whether the reference fits: a `contracts.Generator`, or a
            module or function that is called as it is.
        device: Device of generators, detectors and the teacher.
        teacher: Teacher for `ref=teacher`, and for `ref=auto` without `data`.

    Returns:
        A function that measures one snapshot: (generator, snapshot's file name) -> rows. It lets KeyboardInterrupt
        through: nothing is half-written.

    Raises:
        UserError: A detector or reference cannot be had, or does not fit the other or the generator. A run whose user
            asked for no metric in particular should say so in one line and continue without.
    """
    return Suite.build(options, generator, device, teacher).measure


@dataclass(frozen=True)
class Suite:
    """Everything ready for measuring.

    Attributes:
        options: Options of the measurement.
        metrics: The metrics.
        device: Device of all networks.
        detectors: Detector of each metric, by its name.
        reference: Images to compare with; None if no metric compares.
        labels: Distribution of the generator's labels; None: uniform.
        labels_from: Origin of the labels, for the provenance: "data", "counts", "vectors" or "uniform"; None for an
            unconditional generator.
        resolution: Size of images that are compared, if the generator's are larger; None: its own.
        batch: Images per pass through generator and detector.
        kept: Features of the images drawn last, for a contact sheet.
    """

    options: MetricOptions
    metrics: tuple[Metric, ...]
    device: torch.device
    detectors: dict[str, Detector]
    reference: Reference | None
    labels: Labels | None
    labels_from: str | None = None
    resolution: int | None = None
    batch: BatchSize = field(default_factory=BatchSize, compare=False)
    kept: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    _said: set[str] = field(default_factory=set, compare=False, repr=False)

    @classmethod
    def build(cls, options: MetricOptions, generator: Any, device: torch.device, teacher: Teacher | None) -> Suite:
        """See `make_measure`."""
        generator = as_contract(generator)
        metrics = tuple(parse_metric(name) for name in options.metrics)
        if isinstance(generator, StoredImages):
            generator.require(metrics, options.fid_seeds)
        detectors = load_detectors(metrics, options, device)
        reference = resolution = labels = None
        if any(metric.needs_reference for metric in metrics) or options.data is not None:
            reference = choose_reference(options, detectors, device, teacher)
            _say(*reference.notes)
            resolution = fit(reference, generator)
            labels, notes = fit_labels(reference, generator)
            _say(*notes)
            for metric in metrics:
                if metric.needs_reference:
                    reference.check(metric, detectors[metric.name])
        batch = BatchSize.choose(options.batch, device, int(generator.img_resolution))
        origin = labels_source(reference, labels, generator)
        suite = cls(options, metrics, device, detectors, reference, labels, origin, resolution, batch)
        at_all(lambda: suite.try_out(generator))
        return suite

    def try_out(self, generator: Any) -> None:
        """Draws two images and shows them to each detector, so that whatever does not fit shows early.

        Raises:
            UserError: Labels, a detector or the dimension of features do not fit.
        """
        for metric in self.metrics:
            detector = self.detectors[metric.name]
            images = for_detector(self.sampler(generator, self.resolution_for(metric)).images(range(2)))
            found = metric.try_out(detector, images)
            reference = self._reference_of(metric)
            if reference is not None and (dimension := reference.dimension_for(metric)) not in (None, found):
                raise UserError(
                    f"The reference {reference.where} has features of dimension {dimension} "
                    f"and the detector {detector.path} gives {found}: it was made with another detector. Give that "
                    "detector."
                )

    def measure(self, generator: Any, snapshot_pkl: str) -> list[dict[str, Any]]:
        """Rows for one generator, in the order of the metrics; the same at every process.

        Args:
            generator: Generator on `device`, in evaluation mode.
            snapshot_pkl: Name of its file, for the rows.

        Raises:
            UserError: Its images or a value are not finite, or an image of the reference cannot be read.
            KeyboardInterrupt: Ctrl-C.
        """
        drawn = DrawnImages(self, generator)
        if self.reference is not None:
            compared = [metric for metric in self.metrics if metric.needs_reference]
            self.reference.prepare([(metric.features(self.detectors[metric.name]), metric) for metric in compared])
        rows = []
        for metric in self.metrics:
            start, saved = time.time(), drawn.saved_seconds
            results = self._results(metric, drawn)
            seconds = time.time() - start + drawn.saved_seconds - saved
            rows.append(self._row(metric, results, seconds, snapshot_pkl, drawn.generator))
        if self.options.contact_sheet:
            self.kept.update(drawn.kept)
        return rows

    def name_of(self, metric: Metric) -> str:
        """The metric's name with what sets it apart: `fid50k_full_at64`, `fid50k_full_teacher`."""
        reference = self._reference_of(metric)
        if reference is None:
            return metric.name
        return f"{metric.name}{'' if self.resolution is None else f'_at{self.resolution}'}{reference.suffix}"

    def sampler(self, generator: Any, resolution: int | None) -> Sampler | StoredSampler:
        """Source of the images that are measured."""
        o = self.options
        if isinstance(generator, StoredImages):
            return StoredSampler(generator, self.device, o.seed, resolution, o.resample)
        return Sampler(
            as_contract(generator),
            self.device,
            self.labels,
            o.seed,
            o.noise_mode,
            o.truncation_psi,
            resolution,
            o.resample,
        )

    def resolution_for(self, metric: Metric) -> int | None:
        """Size that a metric's images are reduced to; None: as they are drawn."""
        return self.resolution if metric.needs_reference else None

    def _reference_of(self, metric: Metric) -> Reference | None:
        return self.reference if metric.needs_reference else None

    def _results(self, metric: Metric, drawn: DrawnImages) -> Results:
        generated = metric.measure(drawn)
        reference = self._reference_of(metric)
        real = reference.get(metric.features(self.detectors[metric.name]), metric) if reference is not None else None
        ddof = reference.ddof if reference is not None else 0
        o = self.options
        measured = Measured(generated, real, ddof, o.seed, self.device, o.kid_subsets, o.kid_subset_size, o.bootstrap)
        label = self.name_of(metric)
        results = at_first(lambda: metric.results(label, measured))
        if (warning := results.notes.get("warning")) and label not in self._said:
            self._said.add(label)
            _say(f"{label}: {warning}")
        for name, value in results.values.items():
            if not math.isfinite(value):
                raise UserError(f"{name} is {value}: check the generator's images, the reference and the detector.")
        return results

    def _row(
        self, metric: Metric, results: Results, seconds: float, snapshot_pkl: str, generator: Any
    ) -> dict[str, Any]:
        """A row as the StyleGAN suite writes it, and its provenance."""
        options, reference = self.options, self._reference_of(metric)
        drawn = metric.conditions(options.truncation_psi, options.noise_mode)
        about = getattr(generator, "about", {})  # of images that are stored, and of a teacher's sampler
        conditions = {"images": about} if isinstance(generator, StoredImages) else {**drawn, **about}
        provenance: dict[str, Any] = {
            "detector": self.detectors[metric.name].provenance(),
            "reference": reference.provenance(metric) if reference is not None else None,
            "seed": options.seed,
            **({"labels": self.labels_from} if self.labels_from else {}),
            "num_images": metric.num_gen,
            "batch": self.batch.now,
            "resize": f"{options.resample} to {self.resolution}" if self.resolution_for(metric) else None,
            **conditions,
            "precision": metric.precision,
            **results.notes,
        }
        is_teachers = reference is not None and reference.kind == "teacher"
        notes = [metric.note, "not the data set's: drawn by the teacher" if is_teachers else None]
        if any(notes):
            provenance["note"] = "; ".join(note for note in notes if note)
        return {
            "results": {name: float(value) for name, value in results.values.items()},
            "metric": self.name_of(metric),
            "total_time": seconds,
            "total_time_str": format_time(seconds),
            "num_gpus": distributed.world_size(),
            "snapshot_pkl": snapshot_pkl,
            "timestamp": time.time(),
            "provenance": provenance,
        }


def _say(*lines: str) -> None:
    for line in lines:
        log.warning(line)
