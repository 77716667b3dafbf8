"""Intervals: against the delta method in closed form, and the spread over independent samples."""

from __future__ import annotations

import numpy as np
import pytest

from refine.metrics import fid_interval, frechet_distance, kid, kid_interval
from refine.metrics.bootstrap import Interval, interval_of, resampled_counts
from refine.metrics.moments import Moments


def normals(count: int, dimension: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, dimension)) * scale + shift).astype(np.float32)


def test_counts_are_draws_with_replacement() -> None:
    counts = np.stack([*resampled_counts(1000, 50, seed=3)])
    assert counts.shape == (50, 1000) and (counts.sum(axis=1) == 1000).all()
    assert counts.var() == pytest.approx(1, rel=0.05) and len({tuple(row) for row in counts}) == 50
    assert np.array_equal(counts, np.stack([*resampled_counts(1000, 50, seed=3)]))
    assert not np.array_equal(counts[0], next(resampled_counts(1000, 1, seed=4)))


def test_weighted_moments_are_those_of_repeated_rows() -> None:
    rows = normals(300, 5, 0)
    weights = next(resampled_counts(300, 1, seed=0))
    found, expected = Moments.weighted(rows, weights), Moments.of(np.repeat(rows, weights, axis=0))
    assert found.count == expected.count == 300
    assert np.allclose(found.mean, expected.mean) and np.allclose(found.scatter, expected.scatter)
    with pytest.raises(ValueError, match="no features"):
        Moments.weighted(rows, np.zeros(300, int))


def test_fid_in_one_dimension_has_the_error_of_the_delta_method() -> None:
    """(m - m')^2 + (s - s')^2 of a normal sample: variance (4 (m - m')^2 s^2 + 2 (s - s')^2 s^2) / N."""
    count, mean, std = 4000, 0.7, 1.5
    generated = normals(count, 1, 1, std, mean)
    real = Moments.from_covariance(np.zeros(1), np.eye(1), 10**6, 0)
    found = fid_interval(real, generated, repetitions=400, seed=0)
    variance = (4 * mean**2 * std**2 + 2 * (std - 1) ** 2 * std**2) / count
    assert found.std_error == pytest.approx(np.sqrt(variance), rel=0.1)
    assert found.value == pytest.approx(frechet_distance(real, Moments.of(generated)).value, rel=1e-12)
    assert found.ends == (found.value - 1.96 * found.std_error, found.value + 1.96 * found.std_error)


def test_intervals_are_as_wide_as_the_spread_over_samples() -> None:
    real = normals(2000, 6, 0)
    samples = [normals(400, 6, seed, 1.2, 0.3) for seed in range(1, 81)]
    moments = Moments.of(real)
    fids = [frechet_distance(moments, Moments.of(sample)).value for sample in samples]
    kids = [kid(real, sample, 20, 200) for sample in samples]
    found = np.mean([fid_interval(moments, sample, repetitions=60).std_error for sample in samples[:6]])
    assert found == pytest.approx(np.std(fids, ddof=1), rel=0.25)
    found = np.mean([kid_interval(real, sample, 20, 200, repetitions=60).std_error for sample in samples[:6]])
    assert found == pytest.approx(np.std(kids, ddof=1), rel=0.3)


def test_the_kid_stays_the_kid_and_copies_do_not_raise_it() -> None:
    real, generated = normals(300, 6, 0), normals(100, 6, 1, 1.1, 0.2)
    found = kid_interval(real, generated, 1, 100, 5, repetitions=100)
    assert found.value == pytest.approx(kid(real, generated, 1, 100, 5), rel=1e-10)
    repeated = []
    for counts in resampled_counts(100, 100, 5):
        copies = np.repeat(generated, counts, axis=0)
        repeated.append(kid(real, copies, 1, 100, 5))
    assert np.mean(repeated) > found.value + 0.5 * found.std_error  # what counting pairs of copies would do


def test_a_single_repetition_has_no_spread() -> None:
    with pytest.raises(ValueError, match="1 repetition"):
        interval_of(1.0, [2.0])
    assert Interval(2.0, 0.5).notes("fid5k", 10)["intervals"] == {"fid5k": [pytest.approx(1.02), pytest.approx(2.98)]}
