"""`python -m refine demo`: the built-in digits pair, refined on a CPU and judged; or its teacher distilled."""

from __future__ import annotations

import sys
from typing import Any

import click

from refine.commands.base import Command, is_rank0
from refine.commands.options import field_options
from refine.errors import UserError

MOST_PROCESSES = 2  # half of the batch of 32 takes 0.7 of its time, a quarter hardly less than half
LONG_KIMG = 200.0


@click.command(cls=Command)
@click.option("--distill", is_flag=True, help="Distill the teacher into a one-step generator instead.")
@field_options("outdir", "seed")
@click.option("--long", is_flag=True, help=f"Refine for {LONG_KIMG:g} kimg, which takes some twenty minutes.")
def main(distill: bool, outdir: str, seed: int, long: bool) -> None:
    """Refine the built-in digits generator with edm-digits, measure the result, and write a report and a picture.

    On Linux without a GPU, two processes share the work.
    """
    if distill:
        from refine.digits.distill_demo import distill as distill_digits

        if long:
            raise UserError("--long lengthens the refinement, and --distill has a length of its own: leave one out.")
        distill_digits(outdir, seed)
        return
    from refine.config import RunConfig
    from refine.digits.judge import print_judgment  # torch takes seconds to import
    from refine.runs.start import run
    from refine.runtime.device import choose_device
    from refine.runtime.launch import processes_beside, suitable_processes

    length: dict[str, Any] = {"kimg": LONG_KIMG} if long else {}
    config = RunConfig.from_preset("digits", gan="digits", teacher="edm-digits", outdir=outdir, seed=seed, **length)
    count = suitable_processes(choose_device(config.device), MOST_PROCESSES)
    options = [f"--outdir={outdir}", f"--seed={seed}", *(["--long"] if long else [])]
    with processes_beside(count, [sys.executable, "-m", "refine", "demo", *options]):
        snapshot = run(config)
    if is_rank0():
        print_judgment(snapshot.parent)
