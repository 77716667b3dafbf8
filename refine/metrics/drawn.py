"""Features of one generator's images, drawn once for all metrics that want the same ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from refine.metrics.batch_size import BatchSize
from refine.metrics.collect import collect
from refine.metrics.detectors import Detector
from refine.metrics.metric import FeatureSpec, Metric
from refine.metrics.options import MetricOptions
from refine.metrics.sampler import Labels
from refine.networks.plain_module import as_contract

if TYPE_CHECKING:
    from refine.metrics.suite import Suite

Key = tuple[int, int, int | None]  # first image, number of images, resolution that they are reduced to


class DrawnImages:
    """Images of one generator, as metrics see them.

    Attributes:
        generator: The generator.
        options: Options of generating images.
        device: Device of the generator and the detectors.
        labels: Distribution of labels; None: uniform.
        kept: Features by spec, for each range of images drawn so far.
        saved_seconds: Time spent so far on images of which a later metric made use.
    """

    def __init__(self, suite: Suite, generator: Any) -> None:
        self.generator = as_contract(generator)
        self.options: MetricOptions = suite.options
        self.device: torch.device = suite.device
        self.labels: Labels | None = suite.labels
        self.kept: dict[Key, dict[FeatureSpec, Any]] = {}
        self.saved_seconds = 0.0
        self._suite = suite
        self._seconds: dict[Key, float] = {}

    def detector_of(self, metric: Metric) -> Detector:
        """Detector of a metric."""
        return self._suite.detectors[metric.name]

    def features(self, metric: Metric) -> list[Any]:
        """Kept features of a metric's spec, for each of its ranges. All processes call this and get the same.

        Raises:
            UserError: Images or features are not finite.
            KeyboardInterrupt: Ctrl-C.
        """
        spec = self.spec_of(metric)
        found = []
        for key in self._keys(metric):
            if key in self.kept:
                self.saved_seconds += self._seconds[key]
            else:
                begun = time.time()
                self.kept[key] = self._collect(key)
                self._seconds[key] = time.time() - begun
            found.append(self.kept[key][spec])
        return found

    def spec_of(self, metric: Metric) -> FeatureSpec:
        """Features that a metric wants of generated images: all of them for a bootstrap, whatever the reference has."""
        spec = metric.features(self.detector_of(metric))
        needs_rows = metric.resamples and self.options.bootstrap > 0 and spec.keep == "moments"
        return replace(spec, keep="rows") if needs_rows else spec

    def _keys(self, metric: Metric) -> list[Key]:
        resolution = self._suite.resolution_for(metric)
        return [(part.start, len(part), resolution) for part in metric.ranges(self.options.fid_seeds)]

    def _collect(self, key: Key) -> dict[FeatureSpec, Any]:
        """Everything that any metric wants of these images."""
        first, count, resolution = key
        metrics = [metric for metric in self._suite.metrics if key in self._keys(metric)]
        specs = {self.spec_of(metric) for metric in metrics}
        if self.options.contact_sheet and first == 0:
            specs |= {FeatureSpec(spec.detector, keep="rows") for spec in specs if spec.output != "probabilities"}
        sampler = self._suite.sampler(self.generator, resolution)

        def images(numbers: range, batch: BatchSize) -> Iterator[Tensor]:
            return batch.parts(numbers, sampler.images)

        title = f"images {first}-{first + count - 1}"
        order = sorted(specs, key=lambda spec: (spec.detector.name, spec.output, spec.keep))
        return collect(images, range(first, first + count), order, self._suite.batch, title)
