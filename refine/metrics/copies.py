"""Copies: generated images that are an image of the reference rather than a new one.

In a space of features, a generated image is a near copy if its nearest image of the reference is less than a third as
far as the second nearest (Yoon et al., "Diffusion Probabilistic Models Generalize when They Fail to Memorize", 2023;
Gu et al., arXiv 2310.02664). An image that the reference has twice hides copies of it: its two are equally far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from refine.metrics.detectors import Detector
from refine.metrics.metric import COUNT, FeatureSpec, Measured, Metric, Results, require_images
from refine.metrics.neighbors import MAX_BLOCK_BYTES, Sets

NEAR = 1 / 3  # of the distance to the second neighbor


@dataclass(frozen=True)
class Copies:
    """Near copies among generated images.

    Attributes:
        share: Share of near copies, from 0 to 1.
        median_ratio: Median of the distance to the nearest over that to the second nearest image, from 0 to 1.
        exact: Number of generated images with the very features of a real one.
    """

    share: float
    median_ratio: float
    exact: int


def copies(
    real: Tensor | np.ndarray,
    generated: Tensor | np.ndarray,
    *,
    device: torch.device | str = "cpu",
    max_block_bytes: int = MAX_BLOCK_BYTES,
) -> Copies:
    """Near copies of one set of features in another.

    Args:
        real: Features [N, D], N >= 2.
        generated: Features [M, D], M >= 1.
        device: Device that computes distances.
        max_block_bytes: Bound on the memory of the distances.

    Raises:
        ValueError: There are fewer features.
    """
    if len(real) < 2 or not len(generated):
        raise ValueError(f"{len(real)} features of the reference and {len(generated)} others have no second neighbor")
    distances, _ = Sets.of(real, generated, device=device, max_block_bytes=max_block_bytes).nearest(2)
    first, second = distances.double().cpu().unbind(dim=1)
    ratio = torch.where(second > 0, first / second.clamp(min=torch.finfo(torch.float64).tiny), torch.zeros_like(first))
    return Copies((ratio < NEAR).double().mean().item(), float(np.median(ratio.numpy())), int((first == 0).sum()))


@dataclass(frozen=True)
class CopiesMetric(Metric):
    """`copies50k_full`: share of near copies by Inception features."""

    forms = (rf"copies{COUNT}(?P<full>_full)?",)
    examples = ("copies50k_full",)
    precision = "features and distances float32"

    def features(self, detector: Detector) -> FeatureSpec:
        """See `Metric.features`."""
        return FeatureSpec(detector, keep="rows")

    def results(self, label: str, measured: Measured) -> Results:
        """See `Metric.results`."""
        real, (generated,) = measured.real, measured.generated
        require_images(label, self.least_images, reference=len(real), generated=len(generated))
        device = "cpu" if torch.device(measured.device).type == "mps" else measured.device
        found = copies(real, generated, device=device)
        values = {label: found.share, f"{label}_ratio": found.median_ratio}
        return Results(values, {"exact_copies": found.exact})


@dataclass(frozen=True)
class DinoCopies(CopiesMetric):
    """`copies_dinov2_50k_full`: share of near copies by DINOv2 features."""

    forms = (rf"copies_dinov2_{COUNT}(?P<full>_full)?",)
    examples = ("copies_dinov2_50k_full",)
    role = "dinov2"
