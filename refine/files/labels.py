"""Labels of a data set: classes or vectors, as `dataset.json` gives them to images by name.

The file is {"labels": [["00000/img00000000.png", 6], ["00000/img00000001.png", 9], ...]}, or {"labels": null}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refine.errors import UserError
from refine.files.listing import one_line, with_slashes

MAX_CLASSES = 2**20  # a label beyond is an identifier that was taken for a class


def parse_labels(content: bytes, where: str, names: Sequence[str]) -> np.ndarray | None:
    """Labels of the images `names`, in their order.

    Classes may be written as numbers, booleans or text (3, 3.0, "3", true), as the StyleGAN suite converts them.

    Args:
        content: Content of `dataset.json`.
        where: Its path, for messages.
        names: Images as they are stored; backslashes count as slashes, there and in the file.

    Returns:
        Classes [N] int64, vectors [N, dim] float32, or None if the file says that there are no labels.

    Raises:
        UserError: The file is not JSON, not of this form, or leaves an image without a label.
    """
    given = labels_in(content, where)
    if given is None:
        return None
    by_name = {with_slashes(name): label for name, label in given.items()}
    missing = [name for name in names if with_slashes(name) not in by_name]
    if missing:
        example = f" It names files such as {next(iter(by_name))!r:.60}." if by_name else ""
        raise UserError(
            f"{where} has no label for {missing[0]} ({len(missing):,} of {len(names):,} images): give every image one, "
            f"or none.{example}"
        )
    values = [by_name[with_slashes(name)] for name in names]
    if isinstance(values[0], list):
        return _vectors(values, names, where)
    return np.array([_class(value, name, where) for name, value in zip(names, values, strict=True)], np.int64)


def labels_in(content: bytes, where: str) -> dict[str, Any] | None:
    """Labels by name, as they are written; None if there are none.

    Raises:
        UserError: The content is not JSON, or not of the form above.
    """
    try:
        document = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} is not valid JSON ({error.msg} at line {error.lineno}, column {error.colno}): correct it there, "
            "or remove the file to have no labels."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({one_line(error)}): correct or rewrite it.") from error
    if not isinstance(document, Mapping) or "labels" not in document:
        raise UserError(
            f'{where} has no entry "labels": write {{"labels": [[NAME, LABEL], ...]}}, or {{"labels": null}}.'
        )
    labels = document["labels"]
    if labels is None:
        return None
    if isinstance(labels, Mapping):
        return dict(labels)
    if not isinstance(labels, list):
        raise UserError(f"{where} has labels {labels!r:.40}: write pairs [NAME, LABEL].")
    for number, pair in enumerate(labels):
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UserError(f"{where} has {pair!r:.60} as label number {number}: write pairs [NAME, LABEL].")
    return dict(labels)


def _class(value: Any, name: str, where: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value):
        value = int(value)
    if isinstance(value, list):
        raise UserError(f"{where} mixes labels of different kinds, as of {name}: make all classes, or all vectors.")
    is_whole = isinstance(value, (bool, int)) or (isinstance(value, float) and value.is_integer())
    if not is_whole:
        raise UserError(f"{where} gives {name} the label {value!r:.40}: number the classes 0, 1, 2, ...")
    if not 0 <= value < MAX_CLASSES:
        raise UserError(
            f"{where} gives {name} the label {value!r:.40}, which is not a class from 0 to {MAX_CLASSES - 1}: number "
            "the classes 0, 1, 2, ..."
        )
    return int(value)


def _vectors(values: list[Any], names: Sequence[str], where: str) -> np.ndarray:
    length = len(values[0])
    rows = []
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, list) or len(value) != length or not length:
            raise UserError(
                f"{where} mixes labels of different kinds, as of {name}: make all classes, or all vectors of a length."
            )
        try:
            rows.append(np.array(value, dtype=object).astype(np.float32))
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{where} gives {name} the label {value!r:.60}: write vectors of numbers.") from error
        if rows[-1].ndim != 1 or not np.isfinite(rows[-1]).all():
            raise UserError(f"{where} gives {name} the label {value!r:.60}: write vectors of finite numbers.")
    return np.stack(rows)
