"""`python -m refine export --network=PKL --format=safetensors|rosinality|onnx|pkl-ema --out=FILE`."""

from __future__ import annotations

from pathlib import Path

import click

from refine.commands.base import Command
from refine.commands.locate import network_file
from refine.commands.options import (
    NETWORK,
    OutFile,
    Spec,
    check_output,
    force_option,
    gan_option,
    sigma_init_option,
    trust_option,
)
from refine.errors import UserError
from refine.export.formats import FORMATS


@click.command(cls=Command)
@click.option(
    "--network",
    required=True,
    type=Spec(),
    metavar=NETWORK,
    help="StyleGAN pickle; for --format=pkl, a file of weights; for onnx, any snapshot.",
)
@click.option(
    "--format", "kind", required=True, type=click.Choice([*FORMATS, "pkl"]),
    help="Format to write; pkl brings weights back.",
)  # fmt: skip
@click.option("--out", required=True, type=OutFile(), metavar="FILE", help="File to write.")
@click.option("--like", type=Spec(), metavar=NETWORK, help="For --format=pkl: a pickle of the same architecture.")
@gan_option
@sigma_init_option
@force_option
@trust_option
def main(
    network: str,
    kind: str,
    out: Path,
    like: str | None,
    gan: str | None,
    sigma_init: float | None,
    force: bool,
    trust_pickle: bool,
) -> None:
    """Write a generator in another format, once the file has been found to make the same images."""
    if (kind == "pkl") != (like is not None):
        raise click.UsageError("--format=pkl and --like belong together: weights are brought back into such a pickle.")
    if gan is not None and like is not None:
        raise click.UsageError(
            "--gan makes the network of a snapshot, which --format=pkl does not bring back: leave it out."
        )
    suffix = FORMATS[kind].suffix if kind in FORMATS else ".pkl"
    if out.suffix.lower() != suffix:
        raise UserError(f"--format={kind} writes {suffix} files: give --out such a name, not {out}.")
    network = network_file(network)
    check_output(out, force, (network, like))

    from refine.export import convert  # torch takes seconds to import

    if like is not None:
        done = convert.bring_back(Path(network), network_file(like), out, sigma_init=sigma_init, trust=trust_pickle)
    else:
        done = convert.export(network, kind, out, gan=gan, sigma_init=sigma_init, trust=trust_pickle)
    size = out.stat().st_size
    note = f". {done.note}" if done.note else ""
    click.echo(f"Wrote {out} ({size:,} bytes): its images are the same within {done.difference:.1e}{note}")
