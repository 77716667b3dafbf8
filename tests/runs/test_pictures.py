"""The grids of a run's pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from refine.files.image_grid import layout_of
from refine.networks.sampling import labels_in_turn
from refine.runs.pictures import PictureGrid, real_images


def test_grids_by_device():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert PictureGrid.of(16, 10, cuda) == PictureGrid(30, 32, 10)
    assert PictureGrid.of(16, 10, cpu) == PictureGrid(30, 8, 10)
    assert PictureGrid.of(1024, 0, cpu) == PictureGrid.of(1024, 0, cuda) == PictureGrid(7, 4, 0)


@pytest.mark.parametrize(("num_classes", "columns"), [(10, 30), (3, 7), (1000, 12)])
def test_classes_are_those_of_the_fakes(num_classes, columns):
    grid = PictureGrid(columns, 3, num_classes)
    labels = labels_in_turn(grid.count, num_classes, columns)
    assert grid.classes() == labels.argmax(dim=1).tolist()
    assert grid.column_names == [str(c) for c in grid.classes()[:columns]]


def test_without_classes():
    grid = PictureGrid(4, 2)
    assert grid.classes() == [None] * 8 and grid.column_names == []


def test_fakes_and_reals_stand_in_the_same_places(tmp_path):
    """The digits' test images are sorted by class; beside the fakes each class has its own columns."""
    grid = PictureGrid(10, 2, 10)
    classes = grid.classes()
    reals = real_images("digits-test.zip", classes, seed=1)
    assert reals.dtype == torch.uint8 and reals.shape == (20, 1, 16, 16)
    from refine.digits.digits import shipped_split

    split = shipped_split("test")
    for image, wanted in zip(reals, classes, strict=True):
        same = (split.pixels == image).flatten(1).all(dim=1)
        assert split.classes[same].tolist() and set(split.classes[same].tolist()) == {wanted}
    grid.save(tmp_path / "reals.png", reals, "real images")
    grid.save(tmp_path / "fakes.png", (reals.float() - 128) / 127.5, "after 8 kimg")
    pictures = [Image.open(tmp_path / name) for name in ("reals.png", "fakes.png")]
    layouts = [layout_of(picture) for picture in pictures]
    assert layouts[0] == layouts[1] and layouts[0] is not None
    parts = [np.asarray(picture)[layouts[0].top :] for picture in pictures]
    assert (parts[0] == parts[1]).all()
    assert (real_images("digits-test.zip", classes, seed=1) == reals).all()
