"""`python -m refine profile`: where the time and the memory of a step go."""

from __future__ import annotations

from typing import Any

import click

from refine.commands.base import Command


@click.command(cls=Command)
@click.option("--gan", metavar="PKL|URL|NAME", required=True, help="StyleGAN pickle.")
@click.option("--teacher", metavar="PKL|URL|NAME", required=True, help="EDM pickle.")
@click.option("--batch", type=int, default=8, show_default=True, help="Images of a step.")
@click.option("--batch-gpu", type=int, help="Images that go through the networks at once.")
@click.option("--precision", type=str, default="auto", show_default=True, help="auto, fp32, bf16 or fp16.")
@click.option("--device", type=str, default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--threads", type=int, help="Threads of the CPU.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Steps whose median is taken.")
@click.option("--operators", type=int, default=12, show_default=True, help="Operators to list, slowest first.")
@click.option("--trust-pickle", is_flag=True, help="Run embedded source where Refine has no network of its own.")
def main(
    gan: str,
    teacher: str,
    device: str,
    threads: int | None,
    rounds: int,
    operators: int,
    trust_pickle: bool,
    **given: Any,
) -> None:
    """Say where the time and the memory of a refinement step go, beside what this machine can do."""
    import torch

    from refine.config import RunConfig, TrainingOptions
    from refine.pair.pair import load_pair
    from refine.runtime.device import choose_device
    from refine.training.profiling import lines, profile
    from refine.training.trainer import Trainer

    if threads:
        torch.set_num_threads(threads)
    config = RunConfig(gan=gan, teacher=teacher, device=device, **given)
    trainer = Trainer(
        load_pair(gan, teacher, trust=trust_pickle), config.section(TrainingOptions), choose_device(device)
    )
    for line in lines(profile(trainer, rounds), config.batch, operators):
        click.echo(line)
