"""`python -m refine demo`: the built-in digits pair, refined on a CPU and judged; or its teacher distilled."""

from __future__ import annotations

import click

from refine.commands.base import Command
from refine.commands.options import field_options


@click.command(cls=Command)
@click.option("--distill", is_flag=True, help="Distill the teacher into a one-step generator instead.")
@field_options("outdir", "seed")
def main(distill: bool, outdir: str, seed: int) -> None:
    """Refine the built-in digits generator with edm-digits, measure the result, and write a report and a picture."""
    if distill:
        from refine.digits.distill_demo import distill as distill_digits

        distill_digits(outdir, seed)
        return
    from refine.config import RunConfig
    from refine.digits.judge import print_judgment  # torch takes seconds to import
    from refine.runs.start import run

    config = RunConfig.from_preset("digits", gan="digits", teacher="edm-digits", outdir=outdir, seed=seed)
    print_judgment(run(config).parent)
