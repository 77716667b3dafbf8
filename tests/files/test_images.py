"""Pixels, grids and PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refine.errors import UserError
from refine.files.images import (
    enlarge,
    image_grid,
    join,
    picture_of,
    pixels_of,
    require_finite,
    tile,
    to_picture,
    to_uint8,
    write_png,
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_uint8_is_truncated_as_the_suite_does(dtype: torch.dtype) -> None:
    x = torch.tensor([-1.5, -1.0, -0.001, 0.0, 0.5, 1.0, 7.0], dtype=dtype)
    expected = (x.double() * 127.5 + 128).clamp(0, 255).floor().to(torch.uint8)
    assert torch.equal(to_uint8(x), expected)
    assert to_uint8(x).tolist()[:2] == [0, 0] and to_uint8(x).tolist()[-2:] == [255, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_images_that_are_not_finite_are_refused(bad: float) -> None:
    images = torch.zeros(2, 3, 4, 4)
    require_finite(images, "The teacher", "take another")
    images[1, 2, 3, 3] = bad
    with pytest.raises(UserError) as caught:
        require_finite(images, "The teacher", "take another")
    assert "The teacher" in str(caught.value) and "take another" in str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("as_array", [False, True])
def test_a_grid_holds_every_image_in_its_place(channels: int, as_array: bool) -> None:
    images = torch.randint(0, 256, (5, channels, 4, 6), dtype=torch.uint8)
    grid = tile(images.numpy() if as_array else images, 2, fill=7)
    assert grid.shape == (12, 12, channels)
    for i in range(5):
        row, column = divmod(i, 2)
        part = grid[4 * row : 4 * row + 4, 6 * column : 6 * column + 6]
        np.testing.assert_array_equal(part, images[i].permute(1, 2, 0).numpy())
    assert (grid[8:, 6:] == 7).all()
    spaced = tile(images, 2, fill=9, gap=3)
    assert spaced.shape == (18, 15, channels)
    assert (spaced[4:7] == 9).all() and (spaced[:, 6:9] == 9).all()
    for i in range(5):
        row, column = divmod(i, 2)
        np.testing.assert_array_equal(
            spaced[7 * row : 7 * row + 4, 9 * column : 9 * column + 6], images[i].permute(1, 2, 0).numpy()
        )


def test_joined_and_enlarged() -> None:
    a, b = np.full((2, 3, 1), 1, np.uint8), np.full((2, 3, 1), 2, np.uint8)
    row = join([a, b], 2, axis=1)
    assert row[0, :, 0].tolist() == [1, 1, 1, 255, 255, 2, 2, 2] and row.shape == (2, 8, 1)
    assert join([a, b], 1, axis=0)[:, 0, 0].tolist() == [1, 1, 255, 2, 2]
    assert join([a], 9, axis=1).shape == a.shape
    assert enlarge(row[:, 2:4], 2)[:, :, 0].tolist() == [[1, 1, 255, 255]] * 4


def test_pictures_and_files(tmp_path: Path) -> None:
    for channels, mode in ((1, "L"), (3, "RGB")):
        pixels = np.random.default_rng(0).integers(0, 256, (4, 6, channels), dtype=np.uint8)
        assert picture_of(pixels).mode == mode
        np.testing.assert_array_equal(pixels_of(picture_of(pixels)), pixels)
        write_png(tmp_path / "a.png", pixels)
        with Image.open(tmp_path / "a.png") as picture:
            np.testing.assert_array_equal(pixels_of(picture), pixels)
    images = torch.rand(3, 3, 4, 4) * 2 - 1
    np.testing.assert_array_equal(np.asarray(image_grid(images, 2)), tile(to_uint8(images), 2))
    np.testing.assert_array_equal(np.asarray(to_picture(images[1:2])), to_uint8(images)[1].permute(1, 2, 0).numpy())
    with pytest.raises(UserError) as caught:
        write_png(tmp_path / "nowhere/a.png", pixels)
    assert str(tmp_path / "nowhere/a.png") in str(caught.value)
