"""`python -m refine profile`: where the time and the memory of a step go."""

from __future__ import annotations

from typing import Any

import click

from refine.commands.base import Command
from refine.commands.options import Whole, field_options, trust_option


@click.command(cls=Command)
@field_options(
    "gan", "teacher", "batch", "batch_gpu", "precision", "device",
    batch={"default": "8"}, gan={"help": "StyleGAN pickle."}, teacher={"help": "EDM pickle."},
)  # fmt: skip
@click.option("--threads", type=Whole(1, 4096), metavar="N", help="Threads of the CPU.")
@click.option(
    "--rounds",
    type=Whole(1, 1000),
    metavar="N",
    default=3,
    show_default=True,
    help="Steps to take the median of.",
)
@click.option(
    "--operators", type=Whole(0, 1000), metavar="N", default=12, show_default=True,
    help="Operators to list, slowest first.",
)  # fmt: skip
@trust_option
def main(threads: int | None, rounds: int, operators: int, trust_pickle: bool, **given: Any) -> None:
    """Show where the time and the memory of a refinement step go, beside what this machine can do."""
    import torch

    from refine.config import RunConfig
    from refine.networks.loading import load_gan, load_teacher
    from refine.runs.start import choose_device, make_trainer
    from refine.training.profiling import lines, profile

    if threads is not None:
        torch.set_num_threads(threads)
    config = RunConfig(**given)
    loaded = load_gan(config.gan, trust=trust_pickle), load_teacher(config.teacher, trust=trust_pickle)
    trainer = make_trainer(config, *loaded, choose_device(config.device))
    for line in lines(profile(trainer, rounds), config.batch, operators):
        click.echo(line)
