"""The same values from SciPy's and scikit-learn's formulas, on random and nearly singular features."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from refine.metrics.fid import fid, frechet_distance
from refine.metrics.inception_score import inception_score
from refine.metrics.kid import kid
from refine.metrics.moments import Moments
from refine.metrics.precision_recall import precision_recall


def random_features(count: int, dimension: int, seed: int, smallest: float = 1.0) -> np.ndarray:
    """Normal features whose standard deviations fall from 1 to `smallest`, turned at random."""
    draw = np.random.default_rng(seed)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(dimension, dimension)))[0]
    x = draw.normal(size=(count, dimension)) * np.geomspace(1, smallest, dimension)
    return x @ rotation + draw.normal(size=dimension) * 0.1 + 0.5


def sqrtm_fid(real: np.ndarray, generated: np.ndarray) -> float:
    """The common formula."""
    cov1, cov2 = np.cov(real, rowvar=False, bias=True), np.cov(generated, rowvar=False, bias=True)
    difference = real.mean(axis=0) - generated.mean(axis=0)
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    return float(difference @ difference + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root).real)


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-5])
@pytest.mark.parametrize("dimension", [5, 64, 200])
def test_fid_is_that_of_sqrtm(dimension: int, smallest: float) -> None:
    real, generated = (random_features(4 * dimension, dimension, seed, smallest) for seed in (1, 2))
    result = frechet_distance(Moments.of(real), Moments.of(generated))
    assert result.value == pytest.approx(sqrtm_fid(real, generated), rel=1e-6)


@pytest.mark.parametrize("count", [10, 39, 64])
def test_fid_of_fewer_features_than_dimensions(count: int) -> None:
    """The trace is the sum of singular values of X Y^T over sqrt(n m): no covariance, no root of a rounding."""
    dimension = 64
    real, generated = (random_features(n, dimension, seed) for n, seed in ((count, 1), (count + 3, 2)))
    x, y = (f - f.mean(axis=0) for f in (real, generated))
    cross = scipy.linalg.svdvals(x @ y.T).sum() / np.sqrt(len(x) * len(y))
    difference = real.mean(axis=0) - generated.mean(axis=0)
    expected = difference @ difference + (x**2).sum() / len(x) + (y**2).sum() / len(y) - 2 * cross
    result = frechet_distance(Moments.of(real), Moments.of(generated))
    assert result.value == pytest.approx(expected, rel=1e-9)
    assert abs(result.value - expected) <= result.error


@pytest.mark.parametrize("smallest", [1.0, 1e-4, 1e-8])
def test_stated_error_of_the_fid_holds(smallest: float) -> None:
    """Covariances with the same eigenvectors: the trace is the sum of the products of the standard deviations."""
    dimension = 120
    draw = np.random.default_rng(3)
    rotation = np.linalg.qr(draw.normal(size=(dimension, dimension)))[0]
    s1, s2 = np.geomspace(1, smallest, dimension), np.geomspace(2, smallest, dimension)
    cov1, cov2 = (rotation * np.square(s) @ rotation.T for s in (s1, s2))
    zero = np.zeros(dimension)
    result = fid(zero, cov1, zero, cov2)
    assert abs(result.value - np.square(s1 - s2).sum()) <= result.error
    assert result.error < 1e-4


def test_fid_of_a_set_with_itself_and_of_a_shift() -> None:
    features = random_features(300, 32, seed=4)
    moments = Moments.of(features)
    assert frechet_distance(moments, moments).value <= frechet_distance(moments, moments).error < 1e-7
    assert frechet_distance(moments, Moments.of(features + 0.25)).value == pytest.approx(32 * 0.25**2, rel=1e-9)
    assert frechet_distance(moments, Moments.of(features * 2 - features.mean(axis=0))).value == pytest.approx(
        np.trace(moments.covariance()), rel=1e-9
    )


@pytest.mark.parametrize(("mean", "cov", "message"), [(3, 2, "do not fit"), (2, 3, "do not fit"), (2, 2, "not finite")])
def test_fid_refuses_what_does_not_fit(mean: int, cov: int, message: str) -> None:
    bad = np.full((cov, cov), np.nan) if message == "not finite" else np.eye(cov)
    with pytest.raises(ValueError, match=message):
        fid(np.zeros(2), np.eye(2), np.zeros(mean), bad)


@pytest.mark.parametrize(("count", "dimension", "smallest"), [(60, 16, 1.0), (40, 64, 1.0), (80, 32, 1e-6)])
def test_kid_is_that_of_scikit_learns_kernel(count: int, dimension: int, smallest: float) -> None:
    real, generated = (random_features(n, dimension, s, smallest) for n, s in ((count, 5), (count + 9, 6)))
    size, num_subsets = 30, 7
    draw, expected = np.random.RandomState(8), []
    for _ in range(num_subsets):
        x = generated[draw.choice(len(generated), size, replace=False)]
        y = real[draw.choice(len(real), size, replace=False)]
        kxx, kyy, kxy = (polynomial_kernel(*pair, degree=3, coef0=1) for pair in ((x, x), (y, y), (x, y)))
        off_diagonal = ~np.eye(size, dtype=bool)
        expected.append(kxx[off_diagonal].mean() + kyy[off_diagonal].mean() - 2 * kxy.mean())
    value = kid(real, generated, num_subsets, size, seed=8)
    assert value == pytest.approx(np.mean(expected), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("nhood_size", [1, 3, 5])
@pytest.mark.parametrize(("dimension", "smallest"), [(8, 1.0), (50, 1e-3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_precision_and_recall_are_those_of_nearest_neighbors(
    nhood_size: int, dimension: int, smallest: float, dtype: torch.dtype
) -> None:
    real, generated = (random_features(n, dimension, s, smallest) for n, s in ((150, 1), (210, 2)))

    def share_inside(probes: np.ndarray, manifold: np.ndarray) -> float:
        neighbors = NearestNeighbors(n_neighbors=nhood_size + 1).fit(manifold)
        radii = neighbors.kneighbors(manifold)[0][:, -1]
        distances = np.linalg.norm(probes[:, None] - manifold[None], axis=2)
        return float((distances <= radii).any(axis=1).mean())

    found = precision_recall(real, generated, nhood_size, half=False, dtype=dtype)
    assert found.precision == pytest.approx(share_inside(generated, real), abs=1e-12)
    assert found.recall == pytest.approx(share_inside(real, generated), abs=1e-12)
    assert 0 < found.precision < 1 and 0 < found.recall < 1


def test_precision_without_recall() -> None:
    """One generated mode out of two: everything is precise, half is recalled."""
    draw = np.random.default_rng(0)
    left, right = draw.normal(size=(200, 4)), draw.normal(size=(200, 4)) + 100
    found = precision_recall(np.concatenate([left, right]), left[::-1].copy(), 3)
    assert found.precision == 1 and found.recall == 0.5


def test_inception_score_of_extremes() -> None:
    sure = np.tile(np.eye(10), (50, 1))
    assert inception_score(sure, 5).mean == pytest.approx(10)  # sure of each, all classes alike
    assert inception_score(np.tile(np.full(10, 0.1), (50, 1)), 5).mean == pytest.approx(1)
    assert inception_score(np.tile(np.eye(10)[3], (50, 1)), 5).mean == pytest.approx(1)
