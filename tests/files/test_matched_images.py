"""Real images of the classes that a grid's generated ones have."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from refine.files.dataset import ImageDataset
from refine.files.matched_images import matching_images, matching_items


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=30), st.lists(st.integers(0, 5), max_size=40), st.integers(0, 9)
)
def test_each_item_is_of_the_wanted_class(labels, classes, seed):
    chosen = matching_items(np.array(labels), len(labels), classes, seed)
    counts = Counter(labels)
    for wanted, item in zip(classes, chosen, strict=True):
        assert item is None if not counts[wanted] else labels[item] == wanted
    for number, count in counts.items():
        items = [item for item, wanted in zip(chosen, classes, strict=True) if wanted == number]
        assert len(set(items)) == min(len(items), count)  # none twice before all were taken


def test_vectors_stand_for_their_largest_entry():
    labels = np.eye(4, dtype=np.float32)[[3, 1, 2, 1]]
    chosen = matching_items(labels, 4, [1, 1, 3, 0])
    assert sorted(chosen[:2]) == [1, 3] and chosen[2:] == [0, None]


def test_without_labels_or_classes_any_item_will_do():
    for labels in (None, np.array([0, 0, 1, 1, 2, 2])):
        assert sorted(matching_items(labels, 6, [None] * 6)) == list(range(6))
    assert sorted(matching_items(None, 3, [7, 8, 9])) == [0, 1, 2]


def test_the_seed_decides():
    labels = np.zeros(100, np.int64)
    first, again, other = (matching_items(labels, 100, [0] * 10, seed) for seed in (1, 1, 2))
    assert first == again != other


def write_data(path, labels):
    """Images whose gray value is ten times their class, sorted by class as many data sets are."""
    with zipfile.ZipFile(path, "w") as archive:
        names = []
        for index, label in enumerate(labels):
            file = io.BytesIO()
            Image.fromarray(np.full([4, 4], 10 * label, np.uint8)).save(file, "PNG")
            names.append((f"{index:04d}.png", label))
            archive.writestr(names[-1][0], file.getvalue())
        archive.writestr("dataset.json", json.dumps({"labels": names}))


def test_images_of_a_data_set_by_class(tmp_path):
    write_data(tmp_path / "data.zip", sorted([0, 1, 2] * 5))
    dataset = ImageDataset(tmp_path / "data.zip")
    images = matching_images(dataset, [0, 1, 2, 3] * 2)
    assert images.shape == (8, 1, 4, 4) and images.dtype == np.uint8
    assert images[:, 0, 0, 0].tolist() == [0, 10, 20, 255] * 2  # a class that the data set lacks stays white


def test_a_subset_of_a_data_set(tmp_path):
    write_data(tmp_path / "data.zip", sorted([0, 1, 2] * 5))
    dataset = ImageDataset(tmp_path / "data.zip", max_size=9, xflip=True)
    images = matching_images(dataset, [2, 0, 1])
    assert images[:, 0, 0, 0].tolist() == [20, 0, 10]
