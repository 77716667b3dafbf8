"""Notes on the classes of a pair, from what the pickles say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refine.errors import OptionError
from refine.pair.classes import class_notes


def notes(gan: Any = None, teacher: Any = None, num_classes=3, num_teacher_classes=3, class_map=None):
    """Notes on pickles that are dictionaries with these settings."""
    pickles: list[Any] = [{"training_set_kwargs": gan, "G_ema": None}, {"dataset_kwargs": teacher, "ema": None}]
    return class_notes(*pickles, num_classes, num_teacher_classes, class_map)


def test_without_classes_there_is_nothing_to_say():
    assert notes(num_classes=0, num_teacher_classes=0) == []


def test_teacher_without_classes():
    (note,) = notes(num_teacher_classes=0)
    assert note.startswith("Warning: ") and "teacher" in note


def test_names_are_compared():
    abc, cab = {"class_names": ["a", "b", "c"]}, {"classes": ["c", "a", "b"]}
    (same,) = notes(abc, abc)
    assert not same.startswith("Warning")
    with pytest.raises(OptionError, match=r"\bclass_map=1,2,0\.") as error:
        notes(abc, cab)
    assert "--class-map=1,2,0." in error.value.as_typed()
    assert notes(abc, cab, class_map=(1, 2, 0)) == [same]
    with pytest.raises(OptionError, match=r"\bclass_map=1,2,0\."):
        notes(abc, cab, class_map=(0, 1, 2))
    with pytest.raises(OptionError, match=r"'c'.*\bclass_map\b"):
        notes(abc, {"classes": ["a", "b", "d"]})
    (note,) = notes(abc, {"classes": ["a", "b", "d"]}, class_map=(0, 1, 2))
    assert note.startswith("Warning: ") and "'c'" in note and "--class-map" in note


def test_a_subset_of_a_larger_teachers_classes():
    with pytest.raises(OptionError, match=r"\bclass_map=2,0\."):
        notes({"classes": ["cat", "dog"]}, {"classes": ["dog", "cow", "cat"]}, 2, 3)


@pytest.mark.parametrize(
    "path", ["data/cifar10.zip", r"C:\data\CIFAR10-32x32.zip", "/x/cifar10-cond", "cifar10_32x32/"]
)
def test_same_data_set(path):
    (note,) = notes({"path": path}, {"path": "datasets/cifar10-32x32.zip"})
    assert not note.startswith("Warning") and "'cifar10'" in note


def test_unknown_or_other_data_set():
    (note,) = notes({"path": "a.zip"}, {"path": "b.zip"})
    assert note.startswith("Warning: ") and "'a'" in note and "'b'" in note and "--class-map" in note
    for gan, teacher in ((None, None), ({"path": 3}, {"path": "b.zip"}), ("text", [1])):
        (note,) = notes(gan, teacher)
        assert note.startswith("Warning: ") and "0-2" in note and "--class-map" in note and "trained" not in note
    assert notes({"path": "a.zip"}, {"path": "b.zip"}, class_map=(0, 1, 2)) == []


def test_a_map_that_merges_classes_gets_a_word():
    (note,) = notes(class_map=(0, 0, 2), num_teacher_classes=4)
    assert note.startswith("Warning: ") and "--class-map" in note and "0, 1 become 0" in note and "2 of" in note
    assert notes(class_map=(2, 0, 1)) == notes(class_map=(5, 0, 1), num_teacher_classes=9) == []


def test_golden_pickles(fixture_path):
    from refine import pickles

    gan, teacher = (
        pickles.load(Path(fixture_path(name))) for name in ("sg2ada/b_cond16.pkl", "edm/s4_sid_ddpmpp_cond16.pkl")
    )
    (note,) = class_notes(gan, teacher, 5, 5)
    assert note.startswith("Warning: ") and "0-4" in note and "--class-map" in note
