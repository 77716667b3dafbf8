"""Fréchet inception distance: the Fréchet distance between two normal distributions of features.

Heusel et al., arXiv 1706.08500: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). C1 C2 is not symmetric, and its square
root, as usually computed, is complex, slow and unreliable. But with C1 = A A^T, the eigenvalues of C1 C2 are those of
the symmetric A^T C2 A, and the trace of the root is the sum of their square roots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refine.errors import OptionError, UserError
from refine.metrics.detectors import OFFICIAL, DetectorChoices
from refine.metrics.metric import COUNT, Measured, Metric, Results, require_images
from refine.metrics.moments import Moments


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


@dataclass(frozen=True)
class FID(Metric):
    """`fid50k_full`: Fréchet distance of Inception features; with `fid_seeds`, of several ranges of latents."""

    forms = (rf"fid{COUNT}(?P<full>_full)?",)
    examples = ("fid50k_full",)

    def ranges(self, fid_seeds: int) -> tuple[range, ...]:
        """See `Metric.ranges`."""
        return tuple(range(i * self.num_gen, (i + 1) * self.num_gen) for i in range(fid_seeds))

    def results(self, label: str, measured: Measured) -> Results:
        """See `Metric.results`; with several ranges, each and the minimum, as EDM gives them."""
        real, generated = measured.real, measured.generated
        require_images(label, self.least_images, reference=real.count, generated=generated[0].count)
        try:
            distances = [frechet_distance(real, moments, measured.ddof) for moments in generated]
        except (ValueError, np.linalg.LinAlgError) as error:
            raise UserError(f"{label} cannot be computed ({error}): give another reference or detector.") from error
        values = {label: distances[0].value}
        if len(distances) > 1:
            for number, distance in enumerate(distances):
                first = number * self.num_gen
                values[f"{label}_seeds{first}-{first + self.num_gen - 1}"] = distance.value
            values[f"{label}_min_of_{len(distances)}"] = min(distance.value for distance in distances)
        notes = {
            "covariance": "n" if measured.ddof == 0 else "n-1",
            "rounding_error": max(distance.error for distance in distances),
        }
        fewer = [str(moments.count) for moments in (real, generated[0]) if moments.count <= moments.dimension]
        if fewer:
            dimensions = f"{' and '.join(fewer)} images for {real.dimension} dimensions"
            notes["warning"] = f"{dimensions}: the distance is too large"
        return Results(values, notes)


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
