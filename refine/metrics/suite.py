"""All together: from options and networks to the rows of `metric-<name>.jsonl`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.errors import UserError
from refine.metrics.batch_size import USUAL, BatchSize
from refine.metrics.collect import Tap, at_all, at_first, collect, collect_rows
from refine.metrics.detectors import Detector
from refine.metrics.fid import fid
from refine.metrics.inception_score import inception_score
from refine.metrics.kid import kid
from refine.metrics.metric import MetricSpec, parse_metric
from refine.metrics.options import MetricOptions
from refine.metrics.ppl import path_distances, trimmed_mean
from refine.metrics.precision_recall import precision_recall
from refine.metrics.reference import Reference, Teacher
from refine.metrics.resolve import choose_reference, fit, load_detectors
from refine.metrics.sampler import (
    Labels,
    Sampler,
    draw_labels,
    draw_latents,
    draw_noise,
    draw_uniform,
    for_detector,
    images_at_once,
)
from refine.runtime import distributed
from refine.runtime.text import format_time

# (generator, snapshot's file name) -> rows of metric-<name>.jsonl. All processes call it and get the same rows.
Measure = Callable[[torch.nn.Module, str], Sequence[dict[str, Any]]]

PAIRS_OF_PATHS = 8  # of `MetricOptions.batch` images, one path in eight: path lengths are computed in float32, twice


def make_measure(
    options: MetricOptions, generator: Any, device: torch.device, teacher: Teacher | None = None
) -> Measure:
    """Gets detectors and the reference ready, so that what cannot work is known before a run begins.

    All processes call this with the same arguments.

    Args:
        options: what to measure and how.
        generator: any of the generators to come, to see whether the reference fits.
        device: where generators, detectors and the teacher run.
        teacher: needed for `ref=teacher`, and for `ref=auto` without `data`.

    Returns:
        A function that measures one snapshot: (generator, snapshot's file name) -> rows. It lets KeyboardInterrupt
        through: nothing is half-written.

    Raises:
        UserError: a detector or reference cannot be had, or does not fit the other or the generator. A run for which
            the user asked for no metric in particular should say so in one line and go on without.
    """
    return Suite.build(options, generator, device, teacher).measure


@dataclass(frozen=True)
class Suite:
    """Everything ready for measuring.

    Attributes:
        options: what to measure and how.
        specs: the metrics, parsed.
        device: where networks run.
        detectors: for each metric, its detector.
        reference: what images are compared with; None if no metric compares.
        labels: what the generator's labels are drawn from; None: uniform.
        resolution: of images that are compared, where the generator's are larger; None: its own.
        batch: images that go through generator and detector at once.
        kept: what a contact sheet is made of: features of the images drawn last.
    """

    options: MetricOptions
    specs: tuple[MetricSpec, ...]
    device: torch.device
    detectors: dict[str, Detector]
    reference: Reference | None
    labels: Labels | None
    resolution: int | None = None
    batch: BatchSize = field(default_factory=BatchSize, compare=False)
    kept: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def build(cls, options: MetricOptions, generator: Any, device: torch.device, teacher: Teacher | None) -> Suite:
        """See `make_measure`."""
        specs = tuple(parse_metric(name) for name in options.metrics)
        detectors = load_detectors(specs, options, device)
        reference = None
        if any(spec.needs_reference for spec in specs) or options.data is not None:
            reference = choose_reference(options, detectors, device, teacher)
        resolution = None
        labels = reference.labels if reference is not None else None
        if reference is not None:
            resolution = fit(reference, generator)
            for spec in specs:
                if spec.needs_reference:
                    reference.check(spec, detectors[spec.name])
            if labels is not None and not generator.c_dim:
                labels = None
        batch = BatchSize.choose(options.batch, device, int(generator.img_resolution))
        suite = cls(options, specs, device, detectors, reference, labels, resolution, batch)
        at_all(lambda: suite.try_out(generator))
        return suite

    def try_out(self, generator: Any) -> None:
        """Draws two images and shows them to each detector, so that what does not fit shows early.

        Raises:
            UserError: labels, a detector or the dimension of features do not fit.
        """
        for spec in self.specs:
            detector = self.detectors[spec.name]
            images = for_detector(self.sampler(generator, self._resolution(spec)).images(range(2)))
            if spec.kind == "ppl":
                detector.lpips(images.float())
                continue
            found = getattr(detector, self._tap(spec).output)(images).shape[1]
            wanted = self.reference.dimension if self.reference is not None and spec.needs_reference else None
            if wanted not in (None, found):
                where = getattr(self.reference, "path", "")
                raise UserError(
                    f"The reference {where} has features of dimension {wanted} and the detector {detector.path} gives "
                    f"{found}: it was made with another detector, which --detector names."
                )

    def measure(self, generator: Any, snapshot_pkl: str) -> list[dict[str, Any]]:
        """The rows for one generator, in the order of the metrics; the same at every process.

        Args:
            generator: on `device`, in evaluation mode.
            snapshot_pkl: name of its file, for the rows.

        Raises:
            UserError: its images are not finite, or the reference's cannot be read.
            KeyboardInterrupt: Ctrl-C.
        """
        images: dict[tuple[int, int, int | None], tuple[dict[Tap, Any], float]] = {}
        if self.reference is not None:
            self.reference.prepare([(self._tap(spec), spec) for spec in self.specs if spec.needs_reference])
        rows = []
        for spec in self.specs:
            start = time.time()
            earlier = 0.0  # time spent on images that an earlier metric needed too
            ranges = range(self.options.fid_seeds if spec.kind in ("fid", "fdd") else 1)
            drawn: list[dict[Tap, Any]] = []
            for number in ranges if spec.kind != "ppl" else ():
                key = (number * spec.num_gen, spec.num_gen, self._resolution(spec))
                if key in images:
                    earlier += images[key][1]
                else:
                    begun = time.time()
                    images[key] = self._collect(generator, *key), time.time() - begun
                drawn.append(images[key][0])
            if spec.kind == "ppl":
                results = {self.name_of(spec): self._path_length(generator, spec)}
                extra: dict[str, Any] = {}
            else:
                results, extra = self._value(spec, drawn)
            rows.append(self._row(spec, results, time.time() - start + earlier, snapshot_pkl, extra))
        if self.options.contact_sheet:
            self.kept.update({key: taps for key, (taps, _) in images.items()})
        return rows

    def name_of(self, spec: MetricSpec) -> str:
        """The metric's name, with what sets it apart: `fid50k_full_at64`, `fid50k_full_teacher`."""
        if not spec.needs_reference or self.reference is None:
            return spec.name
        return f"{spec.name}{'' if self.resolution is None else f'_at{self.resolution}'}{self.reference.suffix}"

    # -- images and values ----------------------------------------------------------------------------

    def sampler(self, generator: Any, resolution: int | None) -> Sampler:
        """What draws the images that are measured."""
        o = self.options
        return Sampler(
            generator, self.device, self.labels, o.seed, o.noise_mode, o.truncation_psi, resolution, o.resample
        )

    def _resolution(self, spec: MetricSpec) -> int | None:
        return self.resolution if spec.needs_reference else None

    def _tap(self, spec: MetricSpec) -> Tap:
        detector = self.detectors[spec.name]
        return {
            "fid": Tap(detector),
            "fdd": Tap(detector),
            "kid": Tap(detector, keep="rows"),
            "pr": Tap(detector, keep="half"),
            "is": Tap(detector, output="probabilities", keep="rows"),
        }[spec.kind]

    def _collect(self, generator: Any, first: int, count: int, resolution: int | None) -> dict[Tap, Any]:
        """Draws the images once for all metrics that want these."""
        specs = [s for s in self.specs if s.kind != "ppl" and s.num_gen == count and self._resolution(s) == resolution]
        taps = {self._tap(s) for s in specs if first == 0 or s.kind in ("fid", "fdd")}
        if self.options.contact_sheet and first == 0:
            taps |= {Tap(tap.detector, keep="rows") for tap in taps if tap.output == "features"}
        sampler = self.sampler(generator, resolution)

        def images(numbers: range, batch: BatchSize) -> Iterator[Tensor]:
            return batch.parts(numbers, sampler.images)

        title = f"images {first}-{first + count - 1}"
        order = sorted(taps, key=lambda tap: (tap.detector.name, tap.output, tap.keep))
        return collect(images, range(first, first + count), order, self.batch, title)

    def _value(self, spec: MetricSpec, drawn: Sequence[dict[Tap, Any]]) -> tuple[dict[str, float], dict[str, Any]]:
        """Results of a metric under their names, and what else its row should say."""
        tap, name = self._tap(spec), self.name_of(spec)
        if spec.kind == "is":
            score = inception_score(drawn[0][tap])
            return {f"{name}_mean": score.mean, f"{name}_std": score.std}, {}
        assert self.reference is not None
        real = self.reference.get(tap, spec)
        generated = [taps[tap] for taps in drawn]
        if spec.kind == "kid":
            return {name: at_first(lambda: kid(real, generated[0], seed=self.options.seed))}, {}
        if spec.kind == "pr":
            device = "cpu" if self.device.type == "mps" else self.device
            found = at_first(lambda: precision_recall(real, generated[0], spec.nhood_size, device=device))
            return {f"{name}_precision": found.precision, f"{name}_recall": found.recall}, {}
        ddof = self.reference.ddof
        distances = at_first(lambda: [fid(real, moments, ddof) for moments in generated])
        results = {name: distances[0].value}
        if len(distances) > 1:
            for number, distance in enumerate(distances):
                first = number * spec.num_gen
                results[f"{name}_seeds{first}-{first + spec.num_gen - 1}"] = distance.value
            results[f"{name}_min_of_{len(distances)}"] = min(distance.value for distance in distances)
        extra: dict[str, Any] = {
            "covariance": "n" if ddof == 0 else "n-1",
            "rounding_error": max(d.error for d in distances),
        }
        fewer = [str(m.count) for m in (real, generated[0]) if m.count <= m.dimension]
        if fewer:
            extra["warning"] = (
                f"{' and '.join(fewer)} images for {real.dimension} dimensions: the distance is too large"
            )
        return results, extra

    def _path_length(self, generator: Any, spec: MetricSpec) -> float:
        options, detector = self.options, self.detectors[spec.name]
        missing = [name for name in ("mapping", "synthesis") if not hasattr(generator, name)]
        if missing:
            raise UserError(f"{spec.name} needs a generator with mapping and synthesis, and this one has none.")

        def distances(part: range) -> Tensor:
            ends = draw_latents(part, 2 * int(generator.z_dim), options.seed, "path latents")
            z0, z1 = ends.to(self.device).chunk(2, dim=1)
            c = draw_labels(part, self.labels, int(generator.c_dim), options.seed).to(self.device)
            t = draw_uniform(part, options.seed, "path positions").float().to(self.device)
            t = t if spec.sampling == "full" else t * 0
            noise = draw_noise(generator, part, options.seed, "path noise")
            return path_distances(generator, detector.lpips, (z0, z1), c, t, noise, spec)

        pairs = max(images_at_once(int(generator.img_resolution)) // 2, 1)
        batch = BatchSize(min(max((options.batch or USUAL) // PAIRS_OF_PATHS, 1), pairs))
        numbers, title = range(spec.num_gen), f"paths of {spec.name}"
        found = collect_rows(lambda part, size: size.parts(part, distances), numbers, batch, title)
        if not np.isfinite(found).all():
            raise UserError("The generator draws images that are not finite: take an earlier snapshot.")
        return trimmed_mean(found)

    # -- rows -----------------------------------------------------------------------------------------

    def _row(
        self, spec: MetricSpec, results: dict[str, float], seconds: float, snapshot_pkl: str, extra: dict[str, Any]
    ) -> dict[str, Any]:
        """A row as the StyleGAN suite writes it, and where it comes from."""
        options = self.options
        provenance: dict[str, Any] = {
            "detector": self.detectors[spec.name].provenance(),
            "reference": self.reference.provenance(spec) if spec.needs_reference and self.reference else None,
            "seed": options.seed,
            "num_images": spec.num_gen,
            "batch": self.batch.now,
            "resize": f"{options.resample} to {self.resolution}" if self._resolution(spec) else None,
            "truncation_psi": options.truncation_psi if spec.kind != "ppl" else 1.0,
            "noise_mode": options.noise_mode if spec.kind != "ppl" else "random",
            "precision": "generator as it is, detector float32, statistics float64"
            if spec.kind not in ("pr", "ppl")
            else {"pr": "features float16, distances float32", "ppl": "float32"}[spec.kind],
            **extra,
        }
        notes = [spec.note, "not the data set's: drawn by the teacher" if self._teacher_made(spec) else None]
        if any(notes):
            provenance["note"] = "; ".join(note for note in notes if note)
        return {
            "results": {name: float(value) for name, value in results.items()},
            "metric": self.name_of(spec),
            "total_time": seconds,
            "total_time_str": format_time(seconds),
            "num_gpus": distributed.size(),
            "snapshot_pkl": snapshot_pkl,
            "timestamp": time.time(),
            "provenance": provenance,
        }

    def _teacher_made(self, spec: MetricSpec) -> bool:
        return spec.needs_reference and self.reference is not None and self.reference.kind == "teacher"
