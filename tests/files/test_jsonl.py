"""JSON that every reader can read, and files of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refine.errors import UserError
from refine.files.digest import file_sha256, text_sha256
from refine.files.jsonl import read_rows, to_json
from refine.files.reading import cannot_read, reading

NAN, INF = float("nan"), float("inf")


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {"a": NAN, "b": [1.5, INF, {"c": -INF}], "d": (NAN,)},
            {"a": None, "b": [1.5, None, {"c": None}], "d": [None]},
        ),
        (np.float64("nan"), None),
        ({"a": 1, "b": "NaN", "c": None, "d": True}, {"a": 1, "b": "NaN", "c": None, "d": True}),
    ],
)
def test_numbers_that_json_lacks_become_null(value: Any, expected: Any) -> None:
    assert json.loads(to_json(value), parse_constant=refuse) == expected


def test_finite_values_are_written_as_json_writes_them() -> None:
    row = {"results": {"fid": np.float64(1 / 3)}, "n": 3, "names": ["ä", "\u2028"], "none": None}
    assert to_json(row) == json.dumps(row) and to_json(row, indent=2) == json.dumps(row, indent=2)


def test_rows_and_damaged_lines(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    assert read_rows(path) == ([], 0)
    path.write_bytes(b'{"a": 1}\n\n{"b": "\xe2\x80\xa8"}\r\n[1]\n{"c": \xff}\n' + b"[" * 100_000 + b'\n{"d": 2')
    rows, num_damaged = read_rows(path)
    assert rows == [{"a": 1}, {"b": "\u2028"}] and num_damaged == 4


def test_of_many_rows_evenly_many_and_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(10)))
    for most, expected in ((10, list(range(10))), (5, [0, 2, 4, 6, 8, 9]), (1, [0, 9])):
        assert [row["n"] for row in read_rows(path, most).rows] == expected


def test_what_the_system_says_becomes_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught, reading(tmp_path / "a"):
        (tmp_path / "b").read_bytes()
    assert str(tmp_path / "b") in str(caught.value)  # the file that the system names
    for error in (
        PermissionError(13, "Permission denied"),
        MemoryError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
    ):
        with pytest.raises(UserError) as caught, reading(tmp_path / "a"):
            raise error
        assert str(tmp_path / "a") in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ZeroDivisionError), reading(tmp_path):
        raise ZeroDivisionError
    assert "I/O" in str(cannot_read("x", OSError(5, "I/O error")))


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "a") == text_sha256("abc") == known
    assert len(text_sha256("\udcff")) == 64
