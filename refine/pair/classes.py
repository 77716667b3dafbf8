"""Comparison of the generator's and the teacher's classes, as far as their pickles describe them.

Neither family of pickles has to name its classes. If both do, the names are compared; otherwise, if both name their
data sets, those names are compared. Only the pickles are read, never the data sets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from refine.errors import OptionError, literal
from refine.pickles import NetworkPickle, PickleError
from refine.pickles.records import to_python

_DATA_ENTRIES = ("training_set_kwargs", "dataset_kwargs")
_NAME_LISTS = ("class_names", "classes", "label_names")


def class_notes(
    gan: NetworkPickle,
    teacher: NetworkPickle,
    num_classes: int,
    num_teacher_classes: int,
    class_map: Sequence[int] | None = None,
) -> list[str]:
    """Notes on the classes of a pair that fits, one sentence each; warnings begin with "Warning:".

    Args:
        gan: Pickle of the generator.
        teacher: Pickle of the teacher.
        num_classes: Number of the generator's classes; 0 for an unconditional generator.
        num_teacher_classes: Number of the teacher's classes; 0 for an unconditional teacher.
        class_map: Teacher class of each generator class, as the user gave them; None if not given.

    Raises:
        UserError: Both pickles name their classes, and the names or their order differ.
    """
    if not num_classes:
        return []
    if not num_teacher_classes:
        return [
            "Warning: The generator has classes and the teacher has none: the teacher judges whether an image is "
            "likely, not whether it shows its class, so classes may drift."
        ]
    names, teacher_names = (_class_names(pickle) for pickle in (gan, teacher))
    if names and teacher_names and len(names) == num_classes and len(teacher_names) == num_teacher_classes:
        return _compare_names(names, teacher_names, class_map)
    if class_map is not None:
        return _shared_classes(class_map, num_teacher_classes)
    data, teacher_data = (_data_name(pickle) for pickle in (gan, teacher))
    if data and data == teacher_data:
        return [f"Generator and teacher were both trained on {data!r}: assuming the same classes in the same order."]
    known = (
        f"the generator was trained on {data!r} and the teacher on {teacher_data!r}"
        if data and teacher_data
        else "the pickles carry no class names"
    )
    numbers = "class 0 is the teacher's class 0"
    if num_classes > 1:
        numbers = f"classes 0-{num_classes - 1} are the teacher's classes 0-{num_classes - 1}"
    return [f"Warning: Assuming that the generator's {numbers} ({known}): otherwise use --class-map."]


def _shared_classes(class_map: Sequence[int], num_teacher_classes: int) -> list[str]:
    """A warning where several of the generator's classes are to become one of the teacher's."""
    shared = {to: [k for k, other in enumerate(class_map) if other == to] for to in class_map}
    merged = [f"{', '.join(map(str, own))} become {to}" for to, own in shared.items() if len(own) > 1]
    if not merged:
        return []
    unused = num_teacher_classes - len(shared)
    rest = f", and {unused} of the teacher's classes are left without any" if unused else ""
    return [
        f"Warning: --class-map merges classes of the generator: {'; '.join(merged)}{rest}. Make sure you want this."
    ]


def _compare_names(names: list[str], teacher_names: list[str], class_map: Sequence[int] | None) -> list[str]:
    mapped = [teacher_names[i] for i in class_map] if class_map is not None else teacher_names
    if mapped == names:
        return ["Generator and teacher have the same class names in the same order."]
    if set(names) <= set(teacher_names):
        right = ",".join(str(teacher_names.index(name)) for name in names)
        raise OptionError(f"Generator and teacher have the same classes in different order: use {{class_map={right}}}.")
    missing = next(name for name in names if name not in teacher_names)
    if class_map is not None:
        return [f"Warning: The teacher has no class named {missing!r}; using --class-map as given."]
    raise OptionError(
        f"The teacher has no class named {literal(repr(missing))}, which the generator has: map each generator class "
        "to a teacher class with {class_map}."
    )


def _settings(pickle: NetworkPickle) -> dict[str, Any]:
    """Description of the training data in a pickle; empty if there is none."""
    for key in _DATA_ENTRIES:
        try:
            value = to_python(pickle.get(key))
        except PickleError:
            continue
        if isinstance(value, dict):
            return value
    return {}


def _class_names(pickle: NetworkPickle) -> list[str] | None:
    settings = _settings(pickle)
    for key in _NAME_LISTS:
        value = settings.get(key)
        if isinstance(value, (list, tuple)) and value and all(isinstance(name, str) for name in value):
            return list(value) if len(set(value)) == len(value) else None
    return None


def _data_name(pickle: NetworkPickle) -> str | None:
    """File name of the data set, without the parts that do not concern its classes: folder, suffix, size."""
    path = _settings(pickle).get("path")
    if not isinstance(path, str):
        return None
    name = PurePosixPath(path.replace("\\", "/")).name
    name = re.sub(r"\.(zip|tar|tfrecords?)$", "", name.lower())
    return re.sub(r"[-_]?(\d+x\d+|res\d+|cond|uncond)(?=[-_]|$)", "", name) or None
