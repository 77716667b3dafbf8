"""Whether generator and teacher mean the same by class 0, 1, 2, as far as their pickles tell.

Neither family of pickles has to name its classes. Where both do, the names are compared; where both name their data
sets, those are. Nothing is opened: a pickle's own words are all there is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from refine.errors import UserError
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
    """What there is to say about the classes of a pair that fits, a sentence each.

    Args:
        gan: the generator's pickle.
        teacher: the teacher's.
        num_classes: of the generator, 0 = unconditional.
        num_teacher_classes: of the teacher.
        class_map: what the user said.

    Raises:
        UserError: both name their classes, and not the same in the same order.
    """
    if not num_classes:
        return []
    if not num_teacher_classes:
        return [
            "Warning: The generator has classes and the teacher has none: it sees only that an image is likely, not "
            "that it shows its class, and classes may drift."
        ]
    names, teacher_names = (_class_names(pickle) for pickle in (gan, teacher))
    if names and teacher_names and len(names) == num_classes and len(teacher_names) == num_teacher_classes:
        return _compare_names(names, teacher_names, class_map)
    if class_map is not None:
        return []
    data, teacher_data = (_data_name(pickle) for pickle in (gan, teacher))
    if data and data == teacher_data:
        return [f"Both were trained on {data!r}: their classes are taken to be in the same order."]
    known = (
        f"the generator was trained on {data!r} and the teacher on {teacher_data!r}" if data and teacher_data else ""
    )
    return [
        f"Warning: Class {0 if num_classes == 1 else f'0 to {num_classes - 1}'} of the generator is taken to be the "
        f"teacher's class of that number, and {known or 'the pickles do not tell'}: if not, say which with --class-map."
    ]


def _compare_names(names: list[str], teacher_names: list[str], class_map: Sequence[int] | None) -> list[str]:
    mapped = [teacher_names[i] for i in class_map] if class_map is not None else teacher_names
    if mapped == names:
        return ["Generator and teacher name the same classes in the same order."]
    if set(names) <= set(teacher_names):
        right = ",".join(str(teacher_names.index(name)) for name in names)
        raise UserError(f"Generator and teacher name their classes in another order: use --class-map={right}.")
    missing = next(name for name in names if name not in teacher_names)
    if class_map is not None:
        return [f"Warning: The teacher does not name a class {missing!r}; --class-map is taken at its word."]
    raise UserError(
        f"The generator's class {missing!r} is none that the teacher names: say which of the teacher's classes each of "
        "the generator's is, with --class-map."
    )


def _settings(pickle: NetworkPickle) -> dict[str, Any]:
    """What the pickle says about its training data."""
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
    """The data set's file name without what says nothing about its classes: folder, suffix, size."""
    path = _settings(pickle).get("path")
    if not isinstance(path, str):
        return None
    name = PurePosixPath(path.replace("\\", "/")).name
    name = re.sub(r"\.(zip|tar|tfrecords?)$", "", name.lower())
    return re.sub(r"[-_]?(\d+x\d+|res\d+|cond|uncond)(?=[-_]|$)", "", name) or None
