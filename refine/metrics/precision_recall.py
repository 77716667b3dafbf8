"""Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991).

The manifold of a set is the union of balls around its elements, each as large as the distance to its k-th neighbor.
Precision is the share of generated images within the reference's manifold, recall that of the reference within the
generator's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from refine.errors import UserError
from refine.metrics.detectors import OFFICIAL, Detector, DetectorChoices
from refine.metrics.metric import FeatureSpec, Measured, Metric, Results, count_in, require_images
from refine.metrics.neighbors import MAX_BLOCK_BYTES, Sets

# The neighbors in the suite's names follow a "k"; a count without it has the usual 3.
COUNT_AND_NEIGHBORS = r"(?:(?P<count>[0-9]{1,9})(?P<thousand>k)(?P<nhood>[0-9]{1,9})|(?P<plain>[0-9]{1,9}))"
NHOOD_SIZE = 3


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall, from 0 to 1."""

    precision: float
    recall: float


def precision_recall(
    real: Tensor | np.ndarray,
    generated: Tensor | np.ndarray,
    nhood_size: int = 3,
    *,
    half: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_block_bytes: int = MAX_BLOCK_BYTES,
) -> PrecisionRecall:
    """Precision and recall of two sets of features.

    Distances are computed in blocks of rows: beside one copy of both sets in `dtype`, the distances take no more than
    `max_block_bytes` (but at least one row's).

    Args:
        real: Features [N, D], N > k.
        generated: Features [M, D], M > k.
        nhood_size: Number k of the neighbor, at least 1.
        half: Round features to float16 first, as the StyleGAN suite does.
        dtype: Type of the distances. The suite's are float16 on a GPU, which moves single images across a border.
        device: Device that computes distances.
        max_block_bytes: Bound on the memory of the distances.

    Raises:
        ValueError: A set has no k-th neighbor.
    """
    if not 1 <= nhood_size < min(len(real), len(generated)):
        raise ValueError(f"{len(real)} and {len(generated)} features have no neighbor number {nhood_size} in each set")
    sets = Sets.of(real, generated, half=half, dtype=dtype, device=device, max_block_bytes=max_block_bytes)
    radii_x, radii_y = sets.squared_radii_of_x(nhood_size), sets.squared_radii_of_y(nhood_size)
    precise = []
    recalled = torch.zeros(len(sets.x), dtype=torch.bool, device=sets.x.device)
    for rows, distances in sets.squared_distances():
        precise.append((distances <= radii_x).any(dim=1))
        recalled |= (distances <= radii_y[rows, None]).any(dim=0)
    return PrecisionRecall(torch.cat(precise).double().mean().item(), recalled.double().mean().item())


@dataclass(frozen=True)
class PR(Metric):
    """`pr50k3_full`, `pr512_full`: precision and recall of VGG features.

    Attributes:
        nhood_size: Number k of the neighbor.
    """

    nhood_size: int = NHOOD_SIZE

    forms = (rf"pr{COUNT_AND_NEIGHBORS}(?P<full>_full)?",)
    examples = ("pr50k3_full",)
    max_real_full = 200_000
    role = "vgg"
    precision = "features float16, distances float32"

    @classmethod
    def from_match(cls, name: str, found: Mapping[str, str | None]) -> PR:
        """See `Metric.from_match`."""
        count = count_in(name, {**found, "count": found["count"] or found["plain"]})
        full, nhood_size = found["full"] is not None, int(found["nhood"] or NHOOD_SIZE)
        if not 1 <= nhood_size < count:
            raise UserError(f"The metric {name!r} counts {nhood_size} nearest neighbors: count 1 to {count - 1}.")
        return cls(name, count, full, cls.max_real_full if full else count, nhood_size)

    @property
    def least_images(self) -> int:
        """See `Metric.least_images`."""
        return self.nhood_size + 1

    def detector(self, choices: DetectorChoices) -> str:
        """See `Metric.detector`; a detector of the user's own, given for the FID, serves here too."""
        return choices.own.get("vgg") or choices.own.get("inception") or OFFICIAL["vgg"]

    def features(self, detector: Detector) -> FeatureSpec:
        """See `Metric.features`."""
        return FeatureSpec(detector, keep="half")

    def results(self, label: str, measured: Measured) -> Results:
        """See `Metric.results`."""
        real, (generated,) = measured.real, measured.generated
        require_images(label, self.least_images, reference=len(real), generated=len(generated))
        device = "cpu" if torch.device(measured.device).type == "mps" else measured.device
        found = precision_recall(real, generated, self.nhood_size, device=device)
        return Results({f"{label}_precision": found.precision, f"{label}_recall": found.recall})
