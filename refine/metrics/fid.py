"""Fréchet distance between two normal distributions of features; with Inception features, the FID.

Heusel et al., arXiv 1706.08500: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). C1 C2 is not symmetric, and its square
root, as usually computed, is complex, slow and unreliable. But with C1 = A A^T, the eigenvalues of C1 C2 are those of
the symmetric A^T C2 A, and the trace of the root is the sum of their square roots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refine.metrics.moments import Moments


@dataclass(frozen=True)
class FrechetDistance:
    """Attributes:
    value: the distance, at least 0.
    error: bound on what rounding can have done to it. It is far below 1e-6 of the value unless a covariance is
        nearly singular.
    """

    value: float
    error: float


def frechet_distance(
    mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray, max_rank: int | None = None
) -> FrechetDistance:
    """The Fréchet distance, in float64.

    Args:
        mean1: [D].
        cov1: [D, D], symmetric and positive semidefinite.
        mean2: [D].
        cov2: [D, D], likewise.
        max_rank: the largest rank that either covariance can have, where features are fewer than dimensions; None: D.
            The eigenvalues beyond it are zero and what rounding leaves of them, whose square root is not small, is
            left out.

    Raises:
        ValueError: the shapes do not fit, or something is not finite.
    """
    import scipy.linalg  # takes a while to import, which only a metric should pay for

    mean1, cov1, mean2, cov2 = (np.asarray(array, np.float64) for array in (mean1, cov1, mean2, cov2))
    dimension = len(mean1)
    if mean2.shape != (dimension,) or cov1.shape != (dimension, dimension) or cov2.shape != cov1.shape:
        raise ValueError(f"shapes {mean1.shape}, {cov1.shape} and {mean2.shape}, {cov2.shape} do not fit")
    if not all(np.isfinite(array).all() for array in (mean1, cov1, mean2, cov2)):
        raise ValueError("a mean or covariance is not finite")
    rank = dimension if max_rank is None else min(max_rank, dimension)
    factor = _factor(cov1, definite=rank == dimension)
    product = factor.T @ cov2 @ factor
    eigenvalues = scipy.linalg.eigvalsh((product + product.T) / 2, check_finite=False, overwrite_a=True)
    kept = np.maximum(eigenvalues[::-1][:rank], 0)
    roots = np.sqrt(kept)
    distance = np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * roots.sum()
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


def fid(real: Moments, generated: Moments, ddof: int = 0) -> FrechetDistance:
    """The Fréchet distance of two sets of features.

    Args:
        real: the reference's.
        generated: the generator's.
        ddof: covariances are divided by the number of features minus this: 0 as in the StyleGAN suite, 1 as in EDM.
    """
    max_rank = min(real.rank, generated.rank)
    return frechet_distance(
        real.mean, real.covariance(ddof), generated.mean, generated.covariance(ddof), max_rank=max_rank
    )
