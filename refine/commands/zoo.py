"""`python -m refine zoo`: list the files that have a name, or download one."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from refine.commands.base import Command
from refine.zoo import ENTRIES, ZooEntry, resolve


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="List as JSON, with URLs and digests.")
@click.option("--fetch", "spec", metavar="NAME|URL", help="Download one file and print its path.")
def main(as_json: bool, spec: str | None) -> None:
    """List the files that have a name, or download one of them."""
    if spec is not None:
        click.echo(resolve(spec).path)
    elif as_json:
        click.echo(json.dumps([_described(entry) for entry in ENTRIES], indent=2))
    else:
        click.echo(_table())


def _described(entry: ZooEntry) -> dict[str, object]:
    """The entry for `--json`: plain values, with the cached file and its size."""
    local = entry.local_path()
    size = local.stat().st_size if local else entry.size
    path = str(entry.path) if entry.path else None
    return {**asdict(entry), "path": path, "size": size, "cached": str(local) if local else None}


def _table() -> str:
    rows = [("NAME", "KIND", "FAMILY", "PIXELS", "SIZE", "CACHED", "LICENCE")]
    for entry in ENTRIES:
        known = _described(entry)
        rows.append(
            (
                " = ".join((entry.name, *entry.aliases)),
                entry.kind,
                entry.family,
                str(entry.resolution or "-"),
                f"{known['size'] / 1e6:.1f} MB" if isinstance(known["size"], int) else "-",
                "yes" if known["cached"] else "no",
                entry.licence or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join([*lines, "", "-: not known here; the publisher's page may tell."])
