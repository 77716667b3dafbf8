"""Pictures from tensors."""

from __future__ import annotations

import numpy as np
import torch

from refine.files.images import image_grid


def test_grid():
    images = torch.stack([torch.full((3, 2, 2), v) for v in (-1.0, 0.0, 1.0, 5.0, -5.0)])
    array = np.asarray(image_grid(images, 3))
    assert array.shape == (4, 6, 3)
    assert array[0, ::2, 0].tolist() == [0, 128, 255] and array[2, ::2, 0].tolist() == [255, 0, 0]
    assert image_grid(images[:, :1], 5).mode == "L"
