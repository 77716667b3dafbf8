"""Inception score: a classifier's certainty about each image against its uncertainty about all (arXiv 1606.03498)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refine.errors import UserError
from refine.metrics.detectors import Detector
from refine.metrics.metric import COUNT, FeatureSpec, Measured, Metric, Results, count_in

NUM_SPLITS = 10


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation over the splits; the mean is from 1 to the number of classes."""

    mean: float
    std: float


def inception_score(probabilities: np.ndarray, num_splits: int = NUM_SPLITS) -> InceptionScore:
    """Exponential of the mean Kullback-Leibler divergence from p(class) to p(class | image), in float64.

    Args:
        probabilities: Rows [N, classes] that sum to 1, in the order in which the images were drawn.
        num_splits: Consecutive parts that are scored each for itself, at most N.

    Raises:
        ValueError: There are fewer images than splits.
    """
    from scipy.special import xlogy  # takes a while to import, which only a metric should pay for

    p = np.asarray(probabilities, np.float64)
    if not 1 <= num_splits <= len(p):
        raise ValueError(f"{len(p)} images cannot be split into {num_splits} parts")
    ends = [i * len(p) // num_splits for i in range(num_splits + 1)]
    scores = []
    for first, last in itertools.pairwise(ends):
        part = p[first:last]
        divergence = (xlogy(part, part) - xlogy(part, part.mean(axis=0))).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


@dataclass(frozen=True)
class IS(Metric):
    """`is50k`: inception score, which compares with no reference."""

    forms = (rf"is{COUNT}",)
    examples = ("is50k",)
    needs_reference = False

    @classmethod
    def from_match(cls, name: str, found: Mapping[str, str | None]) -> IS:
        """See `Metric.from_match`."""
        count = count_in(name, found)
        if count < NUM_SPLITS:
            raise UserError(f"The metric {name!r} needs at least {NUM_SPLITS} images: write is{NUM_SPLITS} or more.")
        return cls(name, count)

    def features(self, detector: Detector) -> FeatureSpec:
        """See `Metric.features`."""
        return FeatureSpec(detector, output="probabilities", keep="rows")

    def results(self, label: str, measured: Measured) -> Results:
        """See `Metric.results`."""
        score = inception_score(measured.generated[0])
        return Results({f"{label}_mean": score.mean, f"{label}_std": score.std})
