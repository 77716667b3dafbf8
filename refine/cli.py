"""The command line of `python refine.py`."""

from __future__ import annotations

from typing import Any

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
    from refine.bridge import Shape, make_bridge  # torch takes seconds to import; --help does not
    from refine.loading import LoadedNetwork, load_gan, load_teacher

    def describe(title: str, loaded: LoadedNetwork, classes: str) -> Shape:
        network: Any = loaded.network
        shape = Shape(network.img_resolution, network.img_channels, getattr(network, classes))
        num_parameters = sum(p.numel() for p in network.parameters())
        click.echo(
            f"{title:<9} {loaded.pickle.path} [{loaded.key}]: {loaded.architecture.name}, "
            f"{shape.img_resolution}x{shape.img_resolution}x{shape.img_channels}, "
            f"{f'{shape.num_classes} classes' if shape.num_classes else 'unconditional'}, {num_parameters:,} parameters"
        )
        return shape

    generator = describe("Generator", load_gan(gan, trust=trust_pickle), "c_dim")
    denoiser = describe("Teacher", load_teacher(teacher, trust=trust_pickle), "label_dim")
    bridge = make_bridge(generator, denoiser)
    seen = "as they are"
    if bridge.img_resolution < generator.img_resolution:
        seen = f"reduced to {bridge.img_resolution}x{bridge.img_resolution} ({bridge.resample})"
    click.echo(f"The teacher sees the generator's images {seen}, {'with' if bridge.label_dim else 'without'} classes.")
    if not dry_run:
        raise UserError(
            "This version of Refine opens, checks and rewrites pickles; the refinement itself is not in it yet "
            "(see CHANGELOG.md). Add --dry-run to check a pair."
        )
