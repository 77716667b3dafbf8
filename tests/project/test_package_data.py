"""A wheel holds every file that the packages read."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_all_files_beside_the_modules_are_package_data() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = re.search(r"^\[tool\.setuptools\.package-data\]\n(.*?)^\[", pyproject, flags=re.MULTILINE | re.DOTALL)
    assert section
    for package, listed in re.findall(r"^(\w+) = \[(.*?)\]", section[1], flags=re.MULTILINE | re.DOTALL):
        covered = {path for pattern in re.findall(r'"([^"]+)"', listed) for path in (ROOT / package).glob(pattern)}
        there = {path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
        assert there <= covered, there - covered
