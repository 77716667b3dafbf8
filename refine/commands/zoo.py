"""`python -m refine zoo`: list the files that have a name, or download one."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict

import click

from refine import zoo
from refine.commands.base import Command
from refine.commands.options import Spec
from refine.zoo import ZooEntry

REFINED = {"stylegan2", "edm"}  # families of networks that Refine rebuilds; others need --trust-pickle
MAX_WIDTH = 1000  # columns of a table that goes to a file or another program
KINDS = tuple(dict.fromkeys(entry.kind for entry in zoo.ENTRIES))


@click.command(cls=Command)
@click.argument("word", required=False)
@click.option("--kind", type=click.Choice(KINDS), help="List files of this kind only.")
@click.option("--json", "as_json", is_flag=True, help="List as JSON, with URLs and digests.")
@click.option("--fetch", "spec", type=Spec(), metavar="NAME|URL", help="Download one file and print its path.")
def main(word: str | None, kind: str | None, as_json: bool, spec: str | None) -> None:
    """List the files that have a name, or download one of them. WORD: list only names that contain it."""
    if spec is not None:
        if word is not None or kind is not None or as_json:
            raise click.UsageError("--fetch downloads one file: leave out WORD, --kind and --json.")
        click.echo(zoo.resolve(spec).path)
        return
    found = [entry for entry in zoo.ENTRIES if kind in (None, entry.kind) and _has(entry, word)]
    if as_json:
        click.echo(json.dumps([_described(entry) for entry in found], indent=2))
    elif found:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else MAX_WIDTH
        click.echo(_table(found, width))
    else:
        raise click.UsageError(f"No name{f' of kind {kind}' if kind else ''} contains {word!r}.")


def _has(entry: ZooEntry, word: str | None) -> bool:
    return word is None or any(word.lower() in name.lower() for name in (*entry.spellings, entry.family))


def _described(entry: ZooEntry) -> dict[str, object]:
    """The entry for `--json`: plain values, with the cached file and its size."""
    local = entry.local_path()
    size = local.stat().st_size if local else entry.size
    path = str(entry.path) if entry.path else None
    cached = str(local) if local else None
    return {**asdict(entry), "path": path, "size": size, "cached": cached, "opens": opens(entry)}


def opens(entry: ZooEntry) -> str | None:
    """Whether Refine opens the network by itself: "yes" or "--trust-pickle"; None for what is no network."""
    if entry.kind not in ("generator", "denoiser"):
        return None
    return "yes" if entry.family in REFINED else "--trust-pickle"


def _table(entries: list[ZooEntry], width: int) -> str:
    """One line for each entry; columns on the right are left out where the terminal is too narrow for them."""
    titles = ("NAME", "KIND", "PIXELS", "OPENS", "CACHED", "SIZE", "FAMILY", "LICENSE")
    rows = [titles]
    for entry in entries:
        known = _described(entry)
        rows.append(
            (
                " = ".join((entry.name, *entry.aliases)),
                entry.kind,
                str(entry.resolution or "-"),
                opens(entry) or "-",
                "yes" if known["cached"] else "no",
                _size(known["size"]),
                entry.family,
                entry.licence or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    shown = max((n for n in range(1, len(titles) + 1) if sum(widths[:n]) + 2 * (n - 1) <= width), default=1)
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row[:shown], widths, strict=False)).rstrip() for row in rows]
    notes = ["-: not known here; the publisher's page may tell."]
    if any(opens(entry) == "--trust-pickle" for entry in entries):
        notes.append("OPENS --trust-pickle: Refine has no such network of its own; the flag runs the pickle's source.")
    if shown < len(titles):
        notes.append(f"The terminal is too narrow for {', '.join(titles[shown:])}: --json lists everything.")
    return "\n".join([*lines, "", *notes])


def _size(size: object) -> str:
    if not isinstance(size, int):
        return "-"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
