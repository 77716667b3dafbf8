"""`python -m refine inspect FILE|URL|NAME`: the contents of a network's file, without running anything in it."""

from __future__ import annotations

from pathlib import Path

import click

from refine.commands.base import Command
from refine.commands.locate import network_file
from refine.commands.options import Folder, Spec
from refine.errors import UserError
from refine.files.jsonl import to_json


@click.command(cls=Command)
@click.argument("file", type=Spec(), metavar="FILE|URL|NAME|DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--extract-source", type=Folder(), metavar="DIR", help="Folder for the embedded sources, named by their SHA-256."
)
@click.option("--trust-pickle", is_flag=True, help="Open it even if it names unlisted globals; still runs nothing.")
def main(file: str, as_json: bool, extract_source: Path | None, trust_pickle: bool) -> None:
    """Show the contents of a network's file without running anything in it. DIR is the folder of a run."""
    from refine import pickles, zoo  # torch takes seconds to import; --help does not wait for it
    from refine.networks import describe
    from refine.networks.describe_snapshot import describe_snapshot, format_snapshot
    from refine.networks.own_snapshot import is_snapshot

    path = zoo.resolve(network_file(file)).path
    if is_snapshot(path):
        if extract_source is not None:
            raise UserError(f"{path} holds weights and options, and no source: leave out --extract-source.")
        found = describe_snapshot(path)
        click.echo(to_json(found, indent=2) if as_json else format_snapshot(found))
        return
    network_pickle = pickles.load(path, trust=trust_pickle)
    with pickles.about(network_pickle.path):
        description = describe.describe(network_pickle)
    click.echo(to_json(description, indent=2) if as_json else describe.format_description(description))
    if extract_source is not None:
        files = describe.extract_sources(network_pickle, extract_source)
        plural = "" if len(files) == 1 else "s"
        click.echo(f"Wrote {len(files)} embedded source{plural} to {extract_source}: for reading only.", err=True)
