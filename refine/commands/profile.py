"""`python -m refine profile`: where the time and the memory of a step go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from refine.commands.base import Command
from refine.commands.options import Whole, field_options, trust_option


@click.command(cls=Command)
@field_options(
    "gan", "teacher", "sigma_init", "objective", "gan_weight", "batch", "batch_gpu", "precision", "device",
    batch={"default": "8"}, teacher={"help": "EDM pickle."},
)  # fmt: skip
@click.option("--threads", type=Whole(1, 4096), metavar="N", help="Threads of the CPU.")
@click.option(
    "--rounds",
    type=Whole(1, 1000),
    metavar="N",
    default=3,
    show_default=True,
    help="Number of steps whose median is shown.",
)
@click.option(
    "--operators", type=Whole(0, 1000), metavar="N", default=12, show_default=True,
    help="Operators to list, slowest first.",
)  # fmt: skip
@trust_option
def main(threads: int | None, rounds: int, operators: int, trust_pickle: bool, **given: Any) -> None:
    """Show where the time and the memory of a refinement step go, beside what this machine can do."""
    import torch

    from refine.config import RunConfig, TrainingOptions
    from refine.runs.start import pair_for
    from refine.runtime.device import choose_device
    from refine.training.profiling import lines, profile
    from refine.training.trainer import Trainer

    if threads is not None:
        torch.set_num_threads(threads)
    config = RunConfig(**given, ratio_samples=2)
    pair = replace(pair_for(config, trust=trust_pickle), digests={})  # which keeps no samples
    trainer = Trainer(pair, config.section(TrainingOptions), choose_device(config.device))
    for line in lines(profile(trainer, rounds), config.batch, operators):
        click.echo(line)
