"""`python -m refine report RUNDIR [RUNDIR ...]`."""

from __future__ import annotations

from pathlib import Path

import click

from refine.commands.base import Command
from refine.report import write_report


@click.command(cls=Command)
@click.argument("rundirs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The file; default: report.html in the first RUNDIR.")
def main(rundirs: tuple[Path, ...], out: Path | None) -> None:
    """Write what runs did as one HTML page that needs nothing else: RUNDIR is a folder in training-runs."""
    click.echo(write_report(rundirs, out))
