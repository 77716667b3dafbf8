"""`python -m refine report RUNDIR [RUNDIR ...]`."""

from __future__ import annotations

from pathlib import Path

import click

from refine.commands.base import Command
from refine.commands.locate import run_folder
from refine.commands.options import OutFile, check_output, force_option
from refine.report import write_report


@click.command(cls=Command)
@click.argument("rundirs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=OutFile(".html", ".htm"),
    metavar="HTML",
    help="File to write; default: report.html in the first RUNDIR.",
)
@force_option
def main(rundirs: tuple[Path, ...], out: Path | None, force: bool) -> None:
    """Write what runs did as one HTML page that needs nothing else.

    RUNDIR is a folder in training-runs, or training-runs/latest for the newest one.
    """
    if out is not None:
        check_output(out, force)
    click.echo(write_report([run_folder(rundir) for rundir in rundirs], out))
