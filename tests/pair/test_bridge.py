"""Images are reduced as Pillow reduces them, differentiably; labels and shapes that do not fit end in a sentence."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from refine.errors import UserError
from refine.pair.bridge import Bridge, make_bridge
from refine.pair.resize import FILTERS, resize, resize_matrix

PILLOW = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC, "box": Image.Resampling.BOX}


def Shape(img_resolution, img_channels, num_classes):
    """Properties of a generator or a teacher that a bridge looks at."""
    return SimpleNamespace(
        img_resolution=img_resolution, img_channels=img_channels, c_dim=num_classes, label_dim=num_classes
    )


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(
    ("height", "width", "size"), [(64, 64, 16), (33, 47, 10), (8, 8, 3), (100, 100, 64), (7, 5, 9)]
)
def test_equal_to_pillow(name, height, width, size):
    x = np.random.default_rng(0).uniform(-1, 1, (height, width)).astype(np.float32)
    expected = np.asarray(Image.fromarray(x, mode="F").resize((size, size), PILLOW[name]))
    result = resize(torch.from_numpy(x)[None, None], size, name)[0, 0].numpy()
    assert np.abs(result - expected).max() < 1e-5


@pytest.mark.parametrize("name", FILTERS)
def test_rows_sum_to_one_and_constants_stay(name):
    matrix = resize_matrix(1024, 64, name)
    assert torch.allclose(matrix.sum(1), torch.ones(64, dtype=torch.float64), atol=1e-14)
    assert torch.allclose(resize(torch.full((1, 3, 40, 40), 0.3), 11, name), torch.tensor(0.3), atol=1e-6)


@pytest.mark.parametrize("name", FILTERS)
def test_derivative(name):
    """The reduction is linear, so its gradient is its transpose; checked by finite differences as well."""
    x = torch.randn(2, 1, 9, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resize(x, 5, name), x)
    rows, columns = resize_matrix(9, 5, name), resize_matrix(12, 5, name)
    weight = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((resize(x, 5, name) * weight).sum(), x)
    assert torch.allclose(gradient, rows.t() @ weight @ columns)


def test_same_size_is_the_same_tensor():
    x = torch.randn(1, 3, 8, 8)
    assert resize(x, 8) is x


def test_labels():
    c = torch.eye(3)[[2, 0, 1]]
    assert Bridge(16, 0).labels(c) is None
    assert Bridge(16, 3).labels(c) is c
    mapped = Bridge(16, 5, class_map=(4, 0, 2)).labels(c)
    assert mapped.tolist() == torch.eye(5)[[2, 4, 0]].tolist()
    soft = torch.tensor([[0.25, 0.5, 0.25]])
    assert Bridge(16, 5, class_map=(1, 1, 3)).labels(soft).tolist() == [[0, 0.75, 0, 0.25, 0]]


def test_bridges_that_exist():
    assert make_bridge(Shape(1024, 3, 0), Shape(64, 3, 0)) == Bridge(64, 0)
    assert make_bridge(Shape(32, 3, 10), Shape(32, 3, 10)) == Bridge(32, 10)
    assert make_bridge(Shape(32, 3, 10), Shape(32, 3, 0), "box") == Bridge(32, 0, "box")
    assert make_bridge(Shape(32, 1, 2), Shape(16, 1, 3), class_map=[2, 0]) == Bridge(16, 3, class_map=(2, 0))


@pytest.mark.parametrize(
    ("generator", "teacher", "options", "named"),
    [
        (Shape(32, 1, 0), Shape(32, 3, 0), {}, r"\b1 channel.*\b3\b"),
        (Shape(32, 3, 0), Shape(64, 3, 0), {}, r"\b64 pixels.*\b32\b"),
        (Shape(32, 3, 0), Shape(32, 3, 10), {}, r"\b10 classes.*unconditional"),
        (Shape(32, 3, 10), Shape(32, 3, 1000), {}, r"\b10 classes.*\b1000\b.*\bclass_map\b"),
        (Shape(32, 3, 0), Shape(32, 3, 0), {"resample": "nearest"}, "lanczos, bicubic, box.*'nearest'"),
        (Shape(32, 3, 2), Shape(32, 3, 3), {"class_map": [0]}, r"class_map\b.*\b1\b.*\b2 classes"),
        (Shape(32, 3, 2), Shape(32, 3, 3), {"class_map": [0, 3]}, r"class_map\b.*class 3\b.*0 to 2"),
        (Shape(32, 3, 2), Shape(32, 3, 0), {"class_map": [0, 1]}, r"class_map\b.*classes"),
    ],
)
def test_pairs_that_do_not_fit(generator, teacher, options, named):
    with pytest.raises(UserError, match=named):
        make_bridge(generator, teacher, **options)


def test_unknown_filter_and_empty_images():
    with pytest.raises(ValueError, match="'nearest'"):
        resize_matrix(4, 2, "nearest")
    with pytest.raises(ValueError, match=r"\b0 pixels"):
        resize_matrix(0, 4)
