"""Unpack wheels of packages that this Python lacks, and print the folder; print nothing if it has all of them.

    python packages.py WHEELS FOLDER

Runs on a bare Python before anything else, and imports the standard library alone.
"""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path


def missing(wheels: Path) -> list[Path]:
    """Wheels whose packages cannot be imported; each has the name of the package that it holds."""
    return [
        wheel for wheel in sorted(wheels.glob("*.whl")) if importlib.util.find_spec(wheel.name.split("-")[0]) is None
    ]


def main() -> None:
    wheels, folder = map(Path, sys.argv[1:])
    needed = missing(wheels)
    for wheel in needed:
        print(f"{wheel.name}: not installed, taken from the checkout", file=sys.stderr)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    if needed:
        print(folder)


if __name__ == "__main__":
    main()
