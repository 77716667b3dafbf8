"""The command line of `python refine.py`."""

from __future__ import annotations

import click

from refine.command_line import Command
from refine.errors import UserError


@click.command(cls=Command)
@click.option("--gan", metavar="PKL|URL|NAME", required=True, help="StyleGAN pickle to refine.")
@click.option("--teacher", metavar="PKL|URL|NAME", required=True, help="EDM pickle that teaches it.")
@click.option("-n", "--dry-run", is_flag=True, help="Open and check both, print what they are, and stop.")
@click.option(
    "--trust-pickle",
    is_flag=True,
    help="Run the source embedded in the pickles where Refine has no network of its own.",
)
def main(gan: str, teacher: str, dry_run: bool, trust_pickle: bool) -> None:
    """Make a pretrained StyleGAN generator better with a pretrained diffusion model, and nothing else."""
    from refine.loading import LoadedNetwork, load_gan, load_teacher  # torch takes seconds; --help does not

    def show(title: str, loaded: LoadedNetwork, num_classes: int) -> None:
        size, channels = loaded.network.img_resolution, loaded.network.img_channels
        num_parameters = sum(p.numel() for p in loaded.network.parameters())
        click.echo(
            f"{title:<9} {loaded.pickle.path} [{loaded.key}]: {loaded.architecture.name}, {size}x{size}x{channels}, "
            f"{f'{num_classes} classes' if num_classes else 'unconditional'}, {num_parameters:,} parameters"
        )

    generator = load_gan(gan, trust=trust_pickle)
    denoiser = load_teacher(teacher, trust=trust_pickle)
    show("Generator", generator, int(generator.network.c_dim))  # type: ignore[arg-type]
    show("Teacher", denoiser, int(denoiser.network.label_dim))  # type: ignore[arg-type]
    if not dry_run:
        raise UserError(
            "This version of Refine opens, checks and rewrites pickles; the refinement itself is not in it yet "
            "(see CHANGELOG.md). Add --dry-run to check a pair."
        )
