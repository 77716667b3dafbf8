"""Unpacks wheels of packages that this Python lacks, and prints the folder; nothing if it has all of them.

    python packages.py WHEELS FOLDER

Runs on a bare Python, before anything else: the standard library is all that it imports.
"""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path

# What the command needs beyond PyTorch's and requests' own requirements, by the name that is imported.
IMPORTED_AS = {"pytest": "pytest", "pluggy": "pluggy", "iniconfig": "iniconfig", "packaging": "packaging"} | {
    **{"hypothesis": "hypothesis", "sortedcontainers": "sortedcontainers", "attrs": "attr"},
    **{"filelock": "filelock", "platformdirs": "platformdirs", "urllib3": "urllib3"},
    **{"pygments": "pygments"},
}


def missing(wheels: Path) -> list[Path]:
    """Wheels whose packages cannot be imported."""
    found = []
    for wheel in sorted(wheels.glob("*.whl")):
        distribution = wheel.name.split("-")[0].lower()
        if importlib.util.find_spec(IMPORTED_AS.get(distribution, distribution)) is None:
            found.append(wheel)
    return found


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
