"""Kernel inception distance: the maximum mean discrepancy under a cubic kernel (Bińkowski et al., arXiv 1801.01401)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refine.metrics.detectors import Detector
from refine.metrics.metric import COUNT, FeatureSpec, Measured, Metric, Results, require_images

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
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    size = min(len(real), len(generated), max_subset_size)
    if size < 2:
        raise ValueError(f"KID needs at least 2 features in each set, not {len(real)} and {len(generated)}")
    draw = np.random.RandomState(seed)
    total = 0.0
    for _ in range(num_subsets):
        x = generated[draw.choice(len(generated), size, replace=False)]
        y = real[draw.choice(len(real), size, replace=False)]
        total += squared_mmd(x, y)
    return total / num_subsets


@dataclass(frozen=True)
class KID(Metric):
    """`kid50k_full`: kernel distance of Inception features."""

    forms = (rf"kid{COUNT}(?P<full>_full)?",)
    examples = ("kid50k_full",)
    max_real_full = 1_000_000

    def features(self, detector: Detector) -> FeatureSpec:
        """See `Metric.features`."""
        return FeatureSpec(detector, keep="rows")

    def results(self, label: str, measured: Measured) -> Results:
        """See `Metric.results`."""
        real, (generated,) = measured.real, measured.generated
        require_images(label, self.least_images, reference=len(real), generated=len(generated))
        return Results({label: kid(real, generated, seed=measured.seed)})
