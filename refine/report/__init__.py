"""Run directories -> one self-contained HTML page, readable on a phone: `python -m refine report RUNDIR`.

Reads what a run wrote and imports no torch, so that it also works where only the folder has been copied to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refine.files.atomic import atomic_write
from refine.report.page import page
from refine.report.read import read_run

__all__ = ["write_report"]


def write_report(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes the report of one run, or of several side by side.

    Args:
        folders: run directories, at least one.
        out: the HTML file; None: `report.html` in the (first) run's folder.

    Returns:
        Where it was written.

    Raises:
        UserError: a folder is none of a run, or the file cannot be written.
    """
    runs = [read_run(Path(folder)) for folder in folders]
    path = Path(folders[0]) / "report.html" if out is None else Path(out)
    text = page(runs)
    with atomic_write(path) as file:
        file.write(text.encode())
    return path
