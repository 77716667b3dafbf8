"""The version of Refine: that of the checkout, or that of the installed package."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

PACKAGE = "refine-stylegan"


def version() -> str:
    """The version, such as "0.1.0"; "unknown" in a folder that was copied without `pyproject.toml`."""
    try:
        text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        text = ""
    if f'name = "{PACKAGE}"' in text and (found := re.search(r'^version = "([^"]+)"', text, re.MULTILINE)):
        return found[1]
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return "unknown"
