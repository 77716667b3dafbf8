"""Nearest and farthest samples, and pictures of them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.distance import cdist, mahalanobis

from refine.files.images import tile
from refine.metrics.contact_sheet import (
    distances_to_moments,
    distances_to_rows,
    nearest_and_farthest,
    sheet,
    side_by_side,
)
from refine.metrics.moments import Moments

DRAW = np.random.default_rng(0)
SAMPLES, REFERENCE = DRAW.normal(size=(50, 6)), DRAW.normal(size=(200, 6)) @ DRAW.normal(size=(6, 6))


def test_distances_are_scipys() -> None:
    np.testing.assert_allclose(
        distances_to_rows(SAMPLES, REFERENCE, block=7), cdist(SAMPLES, REFERENCE).min(axis=1), rtol=1e-4
    )
    moments = Moments.of(REFERENCE)
    inverse = np.linalg.inv(moments.covariance())
    expected = [mahalanobis(sample, moments.mean, inverse) for sample in SAMPLES]
    np.testing.assert_allclose(distances_to_moments(SAMPLES, moments), expected, rtol=1e-9)


def test_order() -> None:
    assert nearest_and_farthest(np.array([3.0, 1.0, 2.0, 9.0]), 2) == ([1, 2], [3, 0])


def test_pictures() -> None:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 16, 16)
    grid = tile(images, 2)
    assert grid.shape == (48, 32, 3)
    assert [grid[16 * (i // 2), 16 * (i % 2), 0] for i in range(6)] == [0, 1, 2, 3, 4, 0]
    picture = sheet(images[:2], images[2:4], columns=2)
    assert (
        picture.shape == (34, 32, 3) and picture[0, 16, 0] == 1 and picture[16, 0, 0] == 255 and picture[18, 0, 0] == 2
    )
    pair = side_by_side(images[:4], images[1:5], 2)
    assert pair.shape == (32, 66, 3) and pair[0, 0, 0] == 0 and pair[0, 32, 0] == 255 and pair[0, 34, 0] == 1
