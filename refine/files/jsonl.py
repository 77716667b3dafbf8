"""JSON without NaN, and files with one JSON object per line such as `stats.jsonl` and `metric-<name>.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from refine.files.reading import reading

Row = dict[str, Any]


class Rows(NamedTuple):
    """Content of a file of JSON lines.

    Attributes:
        rows: Its objects, in the order of the file.
        num_damaged: Lines that hold no JSON object, such as the last one of a process that was killed.
    """

    rows: list[Row]
    num_damaged: int


def to_json(value: Any, **options: Any) -> str:
    """JSON text of a value; numbers that JSON does not have (NaN, infinities) become null.

    Args:
        value: Nested dicts, lists, tuples, text, numbers, booleans and None.
        options: Passed on to `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_rows(path: Path, most: int | None = None) -> Rows:
    """Reads a file of JSON lines; a file that does not exist has none.

    Args:
        path: The file.
        most: Most lines to parse; of more, evenly many and the last one. None: all.

    Raises:
        UserError: The file cannot be read.
    """
    rows: list[Row] = []
    num_damaged = 0
    with reading(path):
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [line for line in text.split("\n") if line.strip()]
    if most is not None and len(lines) > most:
        lines = [*lines[: -1 : -(-len(lines) // most)], lines[-1]]
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            num_damaged += 1
    return Rows(rows, num_damaged)
