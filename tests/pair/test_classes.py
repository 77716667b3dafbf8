"""What pickles tell about their classes, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refine.errors import UserError
from refine.pair.classes import class_notes


def notes(gan: Any = None, teacher: Any = None, num_classes=3, num_teacher_classes=3, class_map=None):
    """Of pickles that are dictionaries with these settings."""
    pickles: list[Any] = [{"training_set_kwargs": gan, "G_ema": None}, {"dataset_kwargs": teacher, "ema": None}]
    return class_notes(*pickles, num_classes, num_teacher_classes, class_map)


def test_without_classes_there_is_nothing_to_say():
    assert notes(num_classes=0, num_teacher_classes=0) == []


def test_teacher_without_classes():
    (note,) = notes(num_teacher_classes=0)
    assert note.startswith("Warning") and "classes may drift" in note


def test_names_are_compared():
    abc, cab = {"class_names": ["a", "b", "c"]}, {"classes": ["c", "a", "b"]}
    assert notes(abc, abc) == ["Generator and teacher name the same classes in the same order."]
    with pytest.raises(UserError, match=r"use --class-map=1,2,0\."):
        notes(abc, cab)
    assert notes(abc, cab, class_map=(1, 2, 0)) == notes(abc, abc)
    with pytest.raises(UserError, match="another order"):
        notes(abc, cab, class_map=(0, 1, 2))
    with pytest.raises(UserError, match="class 'c' is none that the teacher names"):
        notes(abc, {"classes": ["a", "b", "d"]})
    assert "taken at its word" in notes(abc, {"classes": ["a", "b", "d"]}, class_map=(0, 1, 2))[0]


def test_a_subset_of_a_larger_teachers_classes():
    with pytest.raises(UserError, match="--class-map=2,0"):
        notes({"classes": ["cat", "dog"]}, {"classes": ["dog", "cow", "cat"]}, 2, 3)


@pytest.mark.parametrize(
    "path", ["data/cifar10.zip", r"C:\data\CIFAR10-32x32.zip", "/x/cifar10-cond", "cifar10_32x32/"]
)
def test_same_data_set(path):
    (note,) = notes({"path": path}, {"path": "datasets/cifar10-32x32.zip"})
    assert note == "Both were trained on 'cifar10': their classes are taken to be in the same order."


def test_unknown_or_other_data_set():
    (note,) = notes({"path": "a.zip"}, {"path": "b.zip"})
    assert "trained on 'a' and the teacher on 'b'" in note and "--class-map" in note
    for gan, teacher in ((None, None), ({"path": 3}, {"path": "b.zip"}), ("text", [1])):
        (note,) = notes(gan, teacher)
        assert note.startswith("Warning: Class 0 to 2") and "the pickles do not tell" in note
    assert notes({"path": "a.zip"}, {"path": "b.zip"}, class_map=(0, 1, 2)) == []


def test_golden_pickles(fixture_path):
    from refine import pickles

    gan, teacher = (
        pickles.load(Path(fixture_path(name))) for name in ("sg2ada/b_cond16.pkl", "edm/s4_sid_ddpmpp_cond16.pkl")
    )
    (note,) = class_notes(gan, teacher, 5, 5)
    assert note.startswith("Warning: Class 0 to 4 of the generator")
