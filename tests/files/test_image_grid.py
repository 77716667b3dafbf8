"""Grids of images: their shape, what lies where, captions, and the layout that travels in the PNG."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from refine.errors import UserError
from refine.files.image_grid import draw_grid, grid_shape, layout_of, save_grid


def test_shapes_are_those_of_the_stylegan_suite():
    """7680x4320 pixels, 7 to 32 images across and 4 to 32 down."""
    expected = {16: (32, 32), 32: (32, 32), 128: (32, 32), 256: (30, 16), 512: (15, 8), 1024: (7, 4), 2048: (7, 4)}
    assert {resolution: grid_shape(resolution) for resolution in expected} == expected


@given(st.integers(1, 4096), st.integers(0, 2000), st.one_of(st.none(), st.integers(1, 2000)))
def test_shapes_keep_their_promises(resolution, num_classes, most):
    columns, rows = grid_shape(resolution, num_classes, most)
    assert 1 <= columns <= 32 and 1 <= rows <= 32
    if most is not None:
        assert columns * rows <= most
    if 0 < num_classes <= columns:
        assert columns % num_classes == 0


def test_classes_have_whole_columns():
    assert grid_shape(16, 10) == (30, 32)
    assert grid_shape(16, 10, most=240) == (30, 8)
    assert grid_shape(512, 1000) == (15, 8)


def random_images(count, channels, size):
    return np.random.RandomState(0).randint(0, 256, [count, channels, size, size], dtype=np.uint8)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("size", [8, 16, 100])
def test_every_image_lies_where_the_layout_says(channels, mode, size):
    images = random_images(5, channels, size)
    picture, layout = draw_grid(images, 3, "8 kimg", ["0", "1", "2"])
    assert picture.mode == mode and picture.size == layout.size
    assert layout.gutter > 0 and layout.top > 0
    assert layout.tile >= 64 and layout.tile % size == 0
    pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
    scale = layout.tile // size
    covered = np.zeros(pixels.shape[:2], bool)
    for index, image in enumerate(images):
        left, upper = layout.corner(index // 3, index % 3)
        found = pixels[upper : upper + layout.tile, left : left + layout.tile]
        assert (found == image.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)).all()
        covered[upper : upper + layout.tile, left : left + layout.tile] = True
    covered[: layout.top] = True
    assert (pixels[~covered] == 255).all()  # gutters, and the place that the short row leaves


@pytest.mark.skipif(not features.check("freetype2"), reason="Pillow has no fonts here")
def test_captions_stand_above_the_images():
    images = random_images(4, 1, 64)
    bare = draw_grid(images, 2)[1]
    assert bare.top == 0
    picture, layout = draw_grid(images, 2, "after 8 kimg", ["left", "right"])
    above = np.asarray(picture)[: layout.top]
    middle = layout.corner(0, 1)[0]
    assert (above[-layout.top // 3 :, :middle] < 128).any() and (above[-layout.top // 3 :, middle:] < 128).any()
    assert (above[: layout.top // 2] < 128).any()
    other, _ = draw_grid(images, 2, "after 9 kimg", ["left", "right"])
    assert (np.asarray(other)[: layout.top] != above).any()
    assert (np.asarray(other)[layout.top :] == np.asarray(picture)[layout.top :]).all()


def test_a_pillow_without_fonts_draws_the_images(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    images = random_images(4, 1, 64)
    picture, layout = draw_grid(images, 2, "after 8 kimg", ["left", "right"])
    assert layout.top == 0
    assert (np.asarray(picture)[:64, :64] == images[0, 0]).all()


def test_the_layout_travels_in_the_file(tmp_path):
    images = random_images(6, 3, 16)
    save_grid(tmp_path / "fakes.png", images, 3, "before", ["a", "b", "c"])
    drawn, layout = draw_grid(images, 3, "before", ["a", "b", "c"])
    with Image.open(tmp_path / "fakes.png") as picture:
        assert layout_of(picture) == layout
        assert (np.asarray(picture) == np.asarray(drawn)).all()
        row = picture.crop(layout.part(rows=1, columns=2, first_row=1))
    scaled = images.repeat(4, axis=2).repeat(4, axis=3).transpose(0, 2, 3, 1)
    assert (np.asarray(row)[:, :64] == scaled[3]).all() and (np.asarray(row)[:, -64:] == scaled[4]).all()
    assert layout.part(rows=100, columns=100) == (0, layout.top, *layout.size)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "not JSON",
        "[]",
        "{}",
        json.dumps({"columns": 2, "rows": 2, "tile": 64, "gutter": 2, "top": 10, "title": 5}),  # of another picture
        json.dumps({"columns": 1, "rows": 1, "tile": 8.0, "gutter": 0, "top": 0, "title": 0}),
        json.dumps({"columns": 1, "rows": 1, "tile": 8, "gutter": 0, "top": 0, "title": 9}),
        json.dumps({"columns": 0, "rows": 0, "tile": 0, "gutter": -8, "top": 0, "title": 0}),
    ],
)
def test_a_picture_without_a_layout_of_its_own(tmp_path, text):
    info = PngInfo()
    if text is not None:
        info.add_text("grid", text)
    Image.new("L", (8, 8)).save(tmp_path / "other.png", pnginfo=info)
    with Image.open(tmp_path / "other.png") as picture:
        assert layout_of(picture) is None


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(UserError, match="missing"):
        save_grid(tmp_path / "missing" / "fakes.png", random_images(1, 1, 8), 1)
