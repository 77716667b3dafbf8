"""One self-contained HTML page about one or more runs, readable on a phone: `python -m refine report RUNDIR`.

It reads what a run wrote and imports no torch, so that it also works where only the folder has been copied to.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from refine.errors import UserError
from refine.files.atomic import atomic_write
from refine.report.page import page
from refine.report.read import read_run

__all__ = ["REPORT", "try_write_report", "write_report"]

REPORT = "report.html"
log = logging.getLogger("refine")


def write_report(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes the report of one run, or of several side by side.

    Args:
        folders: Folders of runs, at least one.
        out: HTML file; None: `report.html` in the (first) run's folder.

    Returns:
        Path of the report.

    Raises:
        UserError: A folder is not that of a run, or the file cannot be written.
    """
    runs = [read_run(Path(folder)) for folder in folders]
    path = Path(folders[0]) / REPORT if out is None else Path(out)
    text = page(runs, path.parent)
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", errors="replace"))
    return path


def try_write_report(folder: str | Path) -> Path | None:
    """Writes the report of a run that goes on; whatever goes wrong costs the report and one line of the log.

    Args:
        folder: Folder of the run.

    Returns:
        Path of the report; None: There is no new one.
    """
    try:
        return write_report([folder])
    except Exception as error:  # hours of training are worth more than a page about them
        about = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        log.warning(f"No report was written ({about}). Try again with python -m refine report {folder}.")
        return None
