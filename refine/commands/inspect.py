"""`python -m refine inspect FILE|URL|NAME`: what a network pickle holds, told without running anything in it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from refine import zoo
from refine.commands.base import Command


@click.command(cls=Command)
@click.argument("file", metavar="FILE|URL|NAME")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--extract-source",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the embedded sources to DIR for reading, named by their SHA-256.",
)
@click.option("--trust-pickle", is_flag=True, help="Open it even where it names unlisted globals; still runs nothing.")
def main(file: str, as_json: bool, extract_source: Path | None, trust_pickle: bool) -> None:
    """Say what a network pickle holds, without running anything in it."""
    from refine import pickles  # torch takes seconds to import; --help does not wait for it
    from refine.networks import describe

    network_pickle = pickles.load(zoo.resolve(file).path, trust=trust_pickle)
    with pickles.about(network_pickle.path):
        description = describe.describe(network_pickle)
    click.echo(json.dumps(description, indent=2) if as_json else describe.format_description(description))
    if extract_source is not None:
        files = describe.extract_sources(network_pickle, extract_source)
        click.echo(
            f"Wrote {len(files)} embedded source(s) to {extract_source}; read them, do not run them.",
            err=True,
        )
