"""Density and coverage (Naeem et al., arXiv 2002.09797), which single outliers move less than precision and recall.

The ball of an element of the reference reaches to its k-th neighbor there. Density is the mean number of balls that a
generated image lies in, over k; coverage is the share of balls with a generated image in them. Being within a ball is
being strictly nearer than its radius, as in the paper and its package `prdc`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from refine.metrics.detectors import Detector
from refine.metrics.metric import FeatureSpec, Measured, Results, require_images
from refine.metrics.neighbors import MAX_BLOCK_BYTES, Sets
from refine.metrics.precision_recall import COUNT_AND_NEIGHBORS, PR

ROUNDINGS = 8  # of a dot product of centered features, relative to their squares


@dataclass(frozen=True)
class DensityCoverage:
    """Density, at least 0 and about 1 for equal distributions, and coverage, from 0 to 1."""

    density: float
    coverage: float


def density_coverage(
    real: Tensor | np.ndarray,
    generated: Tensor | np.ndarray,
    nhood_size: int = 3,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_block_bytes: int = MAX_BLOCK_BYTES,
) -> DensityCoverage:
    """Density and coverage of two sets of features.

    Args:
        real: Features [N, D], N > k.
        generated: Features [M, D], M >= 1.
        nhood_size: Number k of the neighbor, at least 1.
        dtype: Type of the distances.
        device: Device that computes distances.
        max_block_bytes: Bound on the memory of the distances.

    Raises:
        ValueError: An element of the reference has no k-th neighbor, or nothing is generated.
    """
    if not 1 <= nhood_size < len(real) or not len(generated):
        raise ValueError(
            f"{len(real)} features of the reference have no neighbor number {nhood_size}, or there are no others"
        )
    sets = Sets.of(real, generated, dtype=dtype, device=device, max_block_bytes=max_block_bytes)
    radii = sets.squared_radii_of_x(nhood_size)
    # A distance as large as a radius is not within it, however either is rounded: copies of images make such ties.
    slack = ROUNDINGS * torch.finfo(dtype).eps
    squares_x, squares_y = (features.square().sum(dim=1) for features in (sets.x, sets.y))
    pairs = 0
    covered = torch.zeros(len(sets.x), dtype=torch.bool, device=sets.x.device)
    for rows, distances in sets.squared_distances():
        within = distances.add_(squares_y[rows, None], alpha=slack).add_(squares_x, alpha=slack) < radii
        pairs += int(within.sum())
        covered |= within.any(dim=0)
    return DensityCoverage(pairs / (nhood_size * len(generated)), covered.double().mean().item())


@dataclass(frozen=True)
class DC(PR):
    """`dc50k3_full`, `dc512_full`: density and coverage of VGG features."""

    forms = (rf"dc{COUNT_AND_NEIGHBORS}(?P<full>_full)?",)
    examples = ("dc50k3_full",)
    precision = "features and distances float32"

    def features(self, detector: Detector) -> FeatureSpec:
        """See `Metric.features`."""
        return FeatureSpec(detector, keep="rows")

    def results(self, label: str, measured: Measured) -> Results:
        """See `Metric.results`."""
        real, (generated,) = measured.real, measured.generated
        require_images(label, self.least_images, reference=len(real), generated=len(generated))
        device = "cpu" if torch.device(measured.device).type == "mps" else measured.device
        found = density_coverage(real, generated, self.nhood_size, device=device)
        return Results({f"{label}_density": found.density, f"{label}_coverage": found.coverage})
