"""`python -m refine demo`: the built-in digits pair, refined on a CPU and judged."""

from __future__ import annotations

import click

from refine.commands.base import Command
from refine.commands.options import field_options


@click.command(cls=Command)
@field_options("outdir", "seed")
def main(outdir: str, seed: int) -> None:
    """Refine the built-in digits generator with edm-digits, measure the result, and write a report and a picture."""
    from refine.config import RunConfig
    from refine.digits.judge import print_judgment  # torch takes seconds to import
    from refine.runs.start import run

    config = RunConfig.from_preset("digits", gan="digits", teacher="edm-digits", outdir=outdir, seed=seed)
    print_judgment(run(config).parent)
