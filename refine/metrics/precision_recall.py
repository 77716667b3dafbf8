"""Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991).

The manifold of a set is the union of balls around its elements, each as large as the distance to its k-th neighbor.
Precision is the share of generated images within the reference's manifold, recall that of the reference within the
generator's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.errors import UserError
from refine.metrics.detectors import OFFICIAL, Detector, DetectorChoices
from refine.metrics.metric import FeatureSpec, Measured, Metric, Results, count_in, require_images

MAX_BLOCK_BYTES = 256 << 20
CHUNK = 1024  # rows converted at once


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
    sets = [torch.as_tensor(features) for features in (real, generated)]
    # Distances do not depend on the origin, and their rounding is smallest when it lies in the middle.
    origin = sum(_float(part).sum(dim=0) for part in sets[0].split(CHUNK)) / len(sets[0])
    x, y = (_centered(features, origin, half, dtype, device) for features in sets)
    radii_x, radii_y = (_squared_radii(features, nhood_size, max_block_bytes) for features in (x, y))
    squares = x.square().sum(dim=1)
    precise = []
    recalled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for rows in _blocks(len(y), len(x), x.element_size(), max_block_bytes):
        distances = _squared_distances(y[rows], x, squares)
        precise.append((distances <= radii_x).any(dim=1))
        recalled |= (distances <= radii_y[rows, None]).any(dim=0)
    return PrecisionRecall(torch.cat(precise).double().mean().item(), recalled.double().mean().item())


def _float(features: Tensor) -> Tensor:
    return features.to(torch.float32 if features.device.type == "mps" else torch.float64)  # MPS has no float64


def _centered(features: Tensor, origin: Any, half: bool, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """One copy, made a few rows at a time."""
    centered = torch.empty(features.shape, dtype=dtype, device=device)
    for part, target in zip(features.split(CHUNK), centered.split(CHUNK), strict=True):
        target.copy_(_float(part.to(torch.float16) if half else part) - origin)
    return centered


def _blocks(num_rows: int, num_columns: int, element_size: int, max_block_bytes: int) -> list[slice]:
    """Rows whose distances to all columns, and the selection among them, take so many bytes."""
    size = max(max_block_bytes // (4 * num_columns * element_size), 1)
    return [slice(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]


def _squared_distances(x: Tensor, y: Tensor, squares_of_y: Tensor) -> Tensor:
    return torch.addmm(squares_of_y, x, y.t(), alpha=-2).add_(x.square().sum(dim=1, keepdim=True))


def _squared_radii(x: Tensor, nhood_size: int, max_block_bytes: int) -> Tensor:
    """Squared distance of each row to its k-th neighbor; the row itself, at distance 0, is none."""
    squares = x.square().sum(dim=1)
    radii = [
        _squared_distances(x[rows], x, squares).topk(nhood_size + 1, largest=False).values[:, -1]
        for rows in _blocks(len(x), len(x), x.element_size(), max_block_bytes)
    ]
    return torch.cat(radii)


@dataclass(frozen=True)
class PR(Metric):
    """`pr50k3_full`: precision and recall of VGG features.

    Attributes:
        nhood_size: Number k of the neighbor.
    """

    nhood_size: int = 3

    forms = (r"pr(?P<count>[0-9]{1,9})(?P<thousand>k)(?P<nhood>[0-9]{1,9})(?P<full>_full)?",)
    examples = ("pr50k3_full",)
    max_real_full = 200_000
    precision = "features float16, distances float32"

    @classmethod
    def from_match(cls, name: str, found: Mapping[str, str | None]) -> PR:
        """See `Metric.from_match`."""
        count, full, nhood_size = count_in(name, found), found["full"] is not None, int(found["nhood"] or 0)
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
