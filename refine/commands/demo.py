"""`python -m refine demo`: the built-in digits pair, refined on a CPU and judged."""

from __future__ import annotations

from pathlib import Path

import click

from refine.commands.base import Command


@click.command(cls=Command)
@click.option("--outdir", default="training-runs", show_default=True, help="Folder of the run's own folder.")
@click.option("--seed", default=0, show_default=True, help="Seed of everything that is drawn.")
def main(outdir: str, seed: int) -> None:
    """Refine the built-in digits generator with `edm-digits`, measure the result, and write a report and a picture."""
    from refine.commands.run import make_config  # torch takes seconds to import
    from refine.digits.judge import print_judgement
    from refine.runs.start import run

    snapshot = run(make_config({"gan": "digits", "teacher": "edm-digits", "outdir": outdir, "seed": seed}))
    print_judgement(Path(snapshot).parent)
