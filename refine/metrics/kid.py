"""Kernel inception distance: the maximum mean discrepancy under a cubic kernel (Bińkowski et al., arXiv 1801.01401)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from refine.errors import OptionError
from refine.metrics.bootstrap import Interval, interval_of, resampled_counts
from refine.metrics.detectors import Detector
from refine.metrics.metric import COUNT, FeatureSpec, Measured, Results, require_images
from refine.metrics.seeded import Seeded

NUM_SUBSETS, MAX_SUBSET_SIZE = 100, 1000


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x . y / D + 1)^3 for features [N, D] and [M, D]: [N, M]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of the squared discrepancy of two sets [m, D] of one size m >= 2 (arXiv 1801.01401, eq. 4).

    Pairs of an element with itself are left out within a set, and kept between the sets.
    """
    m = len(x)
    within = sum(k.sum() - np.trace(k) for k in (polynomial_kernel(x, x), polynomial_kernel(y, y)))
    return float(within / (m * (m - 1)) - 2 * polynomial_kernel(x, y).mean())


def kid(
    real: np.ndarray,
    generated: np.ndarray,
    num_subsets: int = NUM_SUBSETS,
    max_subset_size: int = MAX_SUBSET_SIZE,
    seed: int = 0,
) -> float:
    """Mean of the squared discrepancy over random subsets, in float64; it can be slightly negative.

    Args:
        real: Features [N, D], N >= 2.
        generated: Features [M, D], M >= 2.
        num_subsets: Subsets drawn of both.
        max_subset_size: Elements of a subset; all of the smaller set if it has fewer.
        seed: Seed of NumPy's legacy generator, which draws the subsets, of the generated set first.

    Raises:
        ValueError: A set has fewer than 2 elements.
    """
    pairs = subsets(real, generated, num_subsets, max_subset_size, seed)
    return sum(squared_mmd(x, y) for _, x, y in pairs) / num_subsets


def subsets(
    real: np.ndarray, generated: np.ndarray, num_subsets: int, max_subset_size: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each random subset, numbers [m] of the generated features, these [m, D], and real ones [m, D], in float64.

    Raises:
        ValueError: A set has fewer than 2 elements.
    """
    real, generated = np.asarray(real), np.asarray(generated)
    size = min(len(real), len(generated), max_subset_size)
    if size < 2:
        raise ValueError(f"KID needs at least 2 features in each set, not {len(real)} and {len(generated)}")
    draw = np.random.RandomState(seed)
    for _ in range(num_subsets):
        drawn = draw.choice(len(generated), size, replace=False)
        real_drawn = draw.choice(len(real), size, replace=False)
        yield drawn, np.asarray(generated[drawn], np.float64), np.asarray(real[real_drawn], np.float64)


def kid_interval(
    real: np.ndarray,
    generated: np.ndarray,
    num_subsets: int = NUM_SUBSETS,
    max_subset_size: int = MAX_SUBSET_SIZE,
    seed: int = 0,
    *,
    repetitions: int,
) -> Interval:
    """The KID, and the interval in which it would lie with other generated images, by a bootstrap.

    Each repetition counts every generated image as often as it was drawn with replacement, in the subsets of the KID
    itself. Pairs of an image with itself stay left out, which would raise the value.

    Args:
        real: Features [N, D], N >= 2, which stay as they are.
        generated: Features [M, D], M >= 2.
        num_subsets: Subsets drawn of both.
        max_subset_size: Elements of a subset; all of the smaller set if it has fewer.
        seed: Seed of the subsets, as for `kid`, and of the repetitions.
        repetitions: Repetitions, at least 2.

    Raises:
        ValueError: A set has fewer than 2 elements.
    """
    drawn_often = resampled_counts(len(generated), repetitions, seed)
    counts = np.stack([np.ones(len(generated)), *drawn_often])  # the first row is the KID itself
    total = np.zeros(len(counts))
    for drawn, x, y in subsets(real, generated, num_subsets, max_subset_size, seed):
        weights, size = counts[:, drawn], len(drawn)
        within, across = polynomial_kernel(x, x), polynomial_kernel(x, y)
        np.fill_diagonal(within, 0)
        pairs = weights.sum(axis=1) ** 2 - (weights**2).sum(axis=1)
        usual = polynomial_kernel(y, y)
        total += ((weights @ within) * weights).sum(axis=1) / np.maximum(pairs, 1)
        total += (usual.sum() - np.trace(usual)) / (size * (size - 1))
        total -= 2 * (weights @ across.mean(axis=1)) / np.maximum(weights.sum(axis=1), 1)
    values = total / num_subsets
    return interval_of(float(values[0]), values[1:])


@dataclass(frozen=True)
class KID(Seeded):
    """`kid50k_full`: kernel distance of Inception features."""

    forms = (rf"kid{COUNT}(?P<full>_full)?",)
    examples = ("kid50k_full",)
    max_real_full = 1_000_000

    def features(self, detector: Detector) -> FeatureSpec:
        """See `Metric.features`."""
        return FeatureSpec(detector, keep="rows")

    def results(self, label: str, measured: Measured) -> Results:
        """See `Metric.results`."""
        real, sets = measured.real, measured.generated
        require_images(label, self.least_images, reference=len(real), generated=len(sets[0]))
        size, fewest = measured.kid_subset_size, min(len(real), len(sets[0]))
        if size is not None and size > fewest:
            raise OptionError(
                f"{label} takes subsets of {size:,} images of {fewest:,}: use {{kid_subset_size={fewest}}} or less."
            )
        settings = measured.kid_subsets, size or MAX_SUBSET_SIZE, measured.seed
        found = self.over_ranges(label, [kid(real, generated, *settings) for generated in sets])
        notes: dict[str, Any] = {"subsets": settings[0], "subset_size": min(settings[1], fewest)}
        if fewest < settings[1]:
            notes["warning"] = (
                f"{fewest} images, fewer than a subset of {settings[1]}: subsets have all {fewest}; the value has no "
                "bias, but much noise"
            )
        if measured.bootstrap:
            interval = kid_interval(real, sets[0], *settings, repetitions=measured.bootstrap)
            notes |= interval.notes(label, measured.bootstrap)
        return Results(found.values, notes)
