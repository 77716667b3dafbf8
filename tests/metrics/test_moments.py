"""Mean and covariance that do not depend on how features come."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from refine.metrics.moments import Moments, MomentsBuilder, merge, merge_all

FEATURES = torch.from_numpy(np.random.default_rng(0).normal(size=(700, 20)).astype(np.float32) + 5)


def built(features: torch.Tensor, batch: int) -> Moments:
    builder = MomentsBuilder()
    for part in features.split(batch):
        builder.add(part)
    moments = builder.build()
    assert moments is not None
    return moments


@pytest.mark.parametrize("ddof", [0, 1])
def test_they_are_numpys(ddof: int) -> None:
    moments = built(FEATURES, 64)
    x = FEATURES.double().numpy()
    assert moments.count == 700
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance(ddof), np.cov(x, rowvar=False, ddof=ddof), rtol=0, atol=1e-13)


def test_the_size_of_batches_changes_no_bit() -> None:
    whole = built(FEATURES, 700)
    for batch in (1, 7, 64, 256, 300):
        part = built(FEATURES, batch)
        assert np.array_equal(part.mean, whole.mean) and np.array_equal(part.scatter, whole.scatter)


@pytest.mark.parametrize("ends", [(350,), (1, 699), (233, 466), (100, 101, 102)])
def test_parts_of_several_processes(ends: tuple[int, ...]) -> None:
    whole = built(FEATURES, 700)
    parts = [built(part, 64) for part in torch.tensor_split(FEATURES, ends)]
    merged = merge_all([None, *parts])
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=0, atol=1e-13 * np.abs(whole.scatter).max())


def test_no_cancellation_far_from_the_origin() -> None:
    """A spread of 1 around ten million, in exact rational arithmetic."""
    x = 1e7 + np.random.default_rng(1).normal(size=(600, 2))
    exact = []
    for column in x.T:
        values = [Fraction(v) for v in column]
        mean = sum(values) / len(values)
        exact.append(float(sum((v - mean) ** 2 for v in values)))
    merged = merge_all([built(part, 7) for part in torch.from_numpy(x).split(100)])
    np.testing.assert_allclose(np.diag(merged.scatter), exact, rtol=1e-8)
    naive = (x**2).sum(axis=0) - 600 * x.mean(axis=0) ** 2
    assert np.abs(naive / exact - 1).max() > 1e-5  # what the test would notice


def test_merging_is_symmetric_and_keeps_counts() -> None:
    a, b = Moments.of(FEATURES[:3]), Moments.of(FEATURES[3:])
    ab, ba = merge(a, b), merge(b, a)
    assert ab.count == ba.count == 700
    np.testing.assert_allclose(ab.scatter, ba.scatter, rtol=1e-12)


def test_from_a_covariance_and_back() -> None:
    moments = Moments.of(FEATURES)
    for ddof in (0, 1):
        again = Moments.from_covariance(moments.mean, moments.covariance(ddof), 700, ddof)
        np.testing.assert_allclose(again.scatter, moments.scatter, rtol=1e-14)
    assert moments.rank == moments.dimension == 20 and Moments.of(FEATURES[:5]).rank == 4


def test_nothing_has_no_moments() -> None:
    assert MomentsBuilder().build() is None
    with pytest.raises(ValueError, match="no features"):
        merge_all([None, None])
