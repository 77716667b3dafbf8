"""CMMD (Jayasumana et al., arXiv 2401.09603): the squared mean discrepancy of CLIP embeddings under a Gaussian kernel.

Unlike the FID it assumes no normal distribution, and unlike the KID it averages over all pairs of all images, each with
itself among them: the estimate is positive even for two samples of one distribution, by about 2000 / N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from refine.metrics.detectors import Detector
from refine.metrics.metric import COUNT, FeatureSpec, Measured, Results, require_images
from refine.metrics.neighbors import MAX_BLOCK_BYTES
from refine.metrics.seeded import Seeded

SIGMA, SCALE = 10.0, 1000.0  # of the paper, and of its published values


def cmmd(
    real: Tensor | np.ndarray,
    generated: Tensor | np.ndarray,
    *,
    sigma: float = SIGMA,
    scale: float = SCALE,
    device: torch.device | str = "cpu",
    max_block_bytes: int = MAX_BLOCK_BYTES,
) -> float:
    """CMMD of two sets of features, in float64.

    scale (E k(r, r') + E k(g, g') - 2 E k(r, g)), means over all pairs, k(a, b) = exp(-|a - b|^2 / (2 sigma^2)).

    Args:
        real: Features [N, D], N >= 1; CMMD's are embeddings of length 1.
        generated: Features [M, D], M >= 1.
        sigma: Width of the kernel.
        scale: Factor of the value.
        device: Device that computes distances, in float64.
        max_block_bytes: Bound on the memory of the kernel's values.

    Raises:
        ValueError: A set is empty, or the dimensions differ.
    """
    sets = [torch.as_tensor(features).to(device, torch.float64) for features in (real, generated)]
    if not all(len(features) for features in sets) or sets[0].shape[1:] != sets[1].shape[1:]:
        raise ValueError(f"features {list(sets[0].shape)} and {list(sets[1].shape)} cannot be compared")
    x, y = (features - sets[0].mean(dim=0) for features in sets)
    within = sum(1 - _missing_kernel(features, features, sigma, max_block_bytes) for features in (x, y))
    return scale * (within - 2 * (1 - _missing_kernel(x, y, sigma, max_block_bytes)))


def normalized(features: np.ndarray) -> np.ndarray:
    """Features [N, D] as directions: float64 rows of length 1; rows of zeros stay as they are."""
    rows = np.asarray(features, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _missing_kernel(x: Tensor, y: Tensor, sigma: float, max_block_bytes: int) -> float:
    """Mean of 1 - k over all pairs: kernels are close to 1, and what they lack of it is what counts."""
    squares = y.square().sum(dim=1)
    total = 0.0
    for part in x.split(max(max_block_bytes // (2 * len(y) * y.element_size()), 1)):
        distances = torch.addmm(squares, part, y.t(), alpha=-2).add_(part.square().sum(dim=1, keepdim=True))
        total -= torch.expm1(distances.clamp_(min=0).mul_(-0.5 / sigma**2)).sum().item()
    return total / (len(x) * len(y))


@dataclass(frozen=True)
class CMMD(Seeded):
    """`cmmd50k`, `cmmd50k_full`: the discrepancy of CLIP embeddings."""

    forms = (rf"cmmd{COUNT}(?P<full>_full)?",)
    examples = ("cmmd50k",)
    role = "clip"
    precision = "generator as it is, detector float32, kernel float64"

    def features(self, detector: Detector) -> FeatureSpec:
        """See `Metric.features`."""
        return FeatureSpec(detector, keep="rows")

    def results(self, label: str, measured: Measured) -> Results:
        """See `Metric.results`."""
        require_images(label, self.least_images, reference=len(measured.real), generated=len(measured.generated[0]))
        device = "cpu" if torch.device(measured.device).type == "mps" else measured.device
        real, *sets = (normalized(features) for features in (measured.real, *measured.generated))
        return self.over_ranges(label, [cmmd(real, generated, device=device) for generated in sets])
