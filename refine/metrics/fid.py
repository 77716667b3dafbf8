"""Fréchet inception distance: the Fréchet distance between two normal distributions of features.

Heusel et al., arXiv 1706.08500: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). C1 C2 is not symmetric, and its square
root, as usually computed, is complex, slow and unreliable. But with C1 = A A^T, the eigenvalues of C1 C2 are those of
the symmetric A^T C2 A, and the trace of the root is the sum of their square roots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from refine.errors import OptionError, UserError
from refine.metrics.bootstrap import Interval, interval_of, resampled_counts
from refine.metrics.detectors import OFFICIAL, Detector, DetectorChoices
from refine.metrics.metric import COUNT, FeatureSpec, Measured, Results, require_images
from refine.metrics.moments import Moments, MomentsBuilder
from refine.metrics.seeded import Seeded


@dataclass(frozen=True)
class FrechetDistance:
    """A distance, and how well it is known.

    Attributes:
        value: The distance, at least 0.
        error: Bound on the effect of rounding; far below 1e-6 of the value unless a covariance is nearly singular.
    """

    value: float
    error: float

    def __float__(self) -> float:
        return self.value


def fid(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray, *, max_rank: int | None = None
) -> FrechetDistance:
    """Fréchet distance of two normal distributions, in float64; `float(...)` of it is the value.

    Args:
        mu1: Mean [D].
        sigma1: Covariance [D, D], symmetric and positive semidefinite.
        mu2: Mean [D] of the other.
        sigma2: Covariance [D, D] of the other.
        max_rank: Largest rank that either covariance can have, if features are fewer than dimensions; None: D. The
            eigenvalues beyond it are zero and what rounding leaves of them, whose square root is not small, is left
            out.

    Raises:
        ValueError: The shapes do not fit, or something is not finite.
    """
    import scipy.linalg  # takes a while to import, which only a metric should pay for

    mu1, sigma1, mu2, sigma2 = (np.asarray(array, np.float64) for array in (mu1, sigma1, mu2, sigma2))
    dimension = len(mu1)
    if mu2.shape != (dimension,) or sigma1.shape != (dimension, dimension) or sigma2.shape != sigma1.shape:
        raise ValueError(f"shapes {mu1.shape}, {sigma1.shape} and {mu2.shape}, {sigma2.shape} do not fit")
    if not all(np.isfinite(array).all() for array in (mu1, sigma1, mu2, sigma2)):
        raise ValueError("a mean or covariance is not finite")
    rank = dimension if max_rank is None else min(max_rank, dimension)
    factor = _factor(sigma1, definite=rank == dimension)
    product = factor.T @ sigma2 @ factor
    eigenvalues = scipy.linalg.eigvalsh((product + product.T) / 2, check_finite=False, overwrite_a=True)
    kept = np.maximum(eigenvalues[::-1][:rank], 0)
    roots = np.sqrt(kept)
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * roots.sum()
    # An eigenvalue is known to within a few roundings of the largest, its root to within min(sqrt(d), d / root).
    d = dimension * np.finfo(np.float64).eps * float(kept.max(initial=0.0))
    error = 2 * np.minimum(np.sqrt(d), d / np.maximum(roots, np.finfo(np.float64).tiny)).sum()
    return FrechetDistance(max(float(distance), 0.0), float(error))


def _factor(covariance: np.ndarray, definite: bool) -> np.ndarray:
    """A with A A^T = covariance."""
    import scipy.linalg

    if definite:
        try:
            return scipy.linalg.cholesky(covariance, lower=True, check_finite=False)
        except np.linalg.LinAlgError:  # nearly singular
            pass
    eigenvalues, vectors = scipy.linalg.eigh(covariance, check_finite=False)
    return vectors * np.sqrt(np.maximum(eigenvalues, 0))


def frechet_distance(real: Moments, generated: Moments, ddof: int = 0) -> FrechetDistance:
    """Fréchet distance of two sets of features.

    Args:
        real: Moments of the reference's features.
        generated: Moments of the generator's features.
        ddof: Covariances are divided by the number of features minus this: 0 as in the StyleGAN suite, 1 as in EDM.

    Raises:
        ValueError: Their dimensions differ, or something is not finite.
    """
    max_rank = min(real.rank, generated.rank)
    return fid(real.mean, real.covariance(ddof), generated.mean, generated.covariance(ddof), max_rank=max_rank)


def fid_interval(
    real: Moments,
    generated: np.ndarray,
    ddof: int = 0,
    *,
    repetitions: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Interval:
    """The Fréchet distance, and the interval in which it would lie with other generated images, by a bootstrap.

    Args:
        real: Moments of the reference's features, which stay as they are.
        generated: The generator's features [N, D], N >= 2.
        ddof: See `frechet_distance`.
        repetitions: Repetitions, at least 2; each takes as long as a Fréchet distance and a covariance.
        seed: Seed of the repetitions.
        device: Device that computes covariances, in float64.

    Raises:
        ValueError: As for `frechet_distance`.
    """
    value = frechet_distance(real, _moments(generated), ddof).value
    rows = torch.as_tensor(np.asarray(generated)).to("cpu" if torch.device(device).type == "mps" else device)
    repeated = [
        frechet_distance(real, Moments.weighted(rows, counts), ddof).value
        for counts in resampled_counts(len(generated), repetitions, seed)
    ]
    return interval_of(value, repeated)


def _moments(features: Moments | np.ndarray) -> Moments:
    """Moments of features [N, D], the same bits whether these were kept or only added up."""
    if isinstance(features, Moments):
        return features
    builder = MomentsBuilder()
    builder.add(torch.from_numpy(features))
    found = builder.build()
    assert found is not None, "a metric has images"
    return found


@dataclass(frozen=True)
class FID(Seeded):
    """`fid50k_full`: Fréchet distance of Inception features; with `fid_seeds`, of several ranges of latents."""

    forms = (rf"fid{COUNT}(?P<full>_full)?",)
    examples = ("fid50k_full",)
    resamples = True

    def results(self, label: str, measured: Measured) -> Results:
        """See `Metric.results`."""
        real, generated = measured.real, [_moments(features) for features in measured.generated]
        require_images(label, self.least_images, reference=real.count, generated=generated[0].count)
        try:
            distances = [frechet_distance(real, moments, measured.ddof) for moments in generated]
            interval = self._interval(measured)
        except (ValueError, np.linalg.LinAlgError) as error:
            raise UserError(f"{label} cannot be computed ({error}): give another reference or detector.") from error
        found = self.over_ranges(label, [distance.value for distance in distances])
        notes: dict[str, Any] = {
            "covariance": "n" if measured.ddof == 0 else "n-1",
            "rounding_error": max(distance.error for distance in distances),
        }
        if interval is not None:
            notes |= interval.notes(label, measured.bootstrap)
        fewer = [str(moments.count) for moments in (real, generated[0]) if moments.count <= moments.dimension]
        if fewer:
            dimensions = f"{' and '.join(fewer)} images for {real.dimension} dimensions"
            notes["warning"] = f"{dimensions}: the distance is too large"
        return Results(found.values, notes)

    def _interval(self, measured: Measured) -> Interval | None:
        if not measured.bootstrap:
            return None
        return fid_interval(
            measured.real,
            measured.generated[0],
            measured.ddof,
            repetitions=measured.bootstrap,
            seed=measured.seed,
            device=measured.device,
        )


@dataclass(frozen=True)
class FDD(FID):
    """`fdd50k_full`: Fréchet distance of the features of a detector of the user's own."""

    forms = (rf"fdd{COUNT}(?P<full>_full)?",)
    examples = ("fdd50k_full",)

    def detector(self, choices: DetectorChoices) -> str:
        """See `Metric.detector`."""
        if choices["inception"] == OFFICIAL["inception"]:
            raise OptionError(
                f"{self.name} is the Fréchet distance with a detector of your own: give it with {{detector}}."
            )
        return choices["inception"]


@dataclass(frozen=True)
class SpatialFID(FID):
    """`sfid50k_full`: Fréchet distance of features before pooling, which tell where in the image something is.

    Nash et al., arXiv 2103.03841: the first 7 channels of the 17 x 17 positions of Inception's layer mixed_6/conv.
    """

    forms = (rf"sfid{COUNT}(?P<full>_full)?",)
    examples = ("sfid50k_full",)
    statistics = "sfid"

    def features(self, detector: Detector) -> FeatureSpec:
        """See `Metric.features`."""
        return FeatureSpec(detector, output="spatial")


@dataclass(frozen=True)
class DinoFD(FID):
    """`fd_dinov2_50k_full`: Fréchet distance of DINOv2 features (Stein et al., arXiv 2306.04675)."""

    forms = (rf"fd_dinov2_{COUNT}(?P<full>_full)?",)
    examples = ("fd_dinov2_50k_full",)
    role = "dinov2"
    statistics = "fd_dinov2"


@dataclass(frozen=True)
class ClipFID(FID):
    """`clip_fid50k_full`: Fréchet distance of CLIP embeddings (Kynkäänniemi et al., arXiv 2203.06026)."""

    forms = (rf"clip_fid{COUNT}(?P<full>_full)?",)
    examples = ("clip_fid50k_full",)
    role = "clip"
    statistics = None
