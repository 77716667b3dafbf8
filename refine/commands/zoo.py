"""`python -m refine zoo`: list the files that have a name, or download one."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from refine import zoo
from refine.commands.base import Command
from refine.commands.options import Spec
from refine.zoo_entries import KINDS, ZooEntry

HEADER = ("NAME", "REFINES", "FAMILY", "PIXELS", "SIZE", "CACHED", "LICENSE")
NARROWEST_NAME = 20
GAP = 2  # between columns


@click.command(cls=Command)
@click.argument("word", required=False)
@click.option("--kind", type=click.Choice(KINDS), help="List files of this kind only.")
@click.option("--json", "as_json", is_flag=True, help="List as JSON, with URLs and digests.")
@click.option("--fetch", "spec", type=Spec(), metavar="NAME|URL", help="Download one file and print its path.")
def main(word: str | None, kind: str | None, as_json: bool, spec: str | None) -> None:
    """List the files that have a name, or download one of them. WORD: list only names that contain it.

    The column REFINES tells if Refine opens a network and refines it, or refines with it.
    """
    if spec is not None:
        if word is not None or kind is not None or as_json:
            raise click.UsageError("--fetch downloads one file: leave out WORD, --kind and --json.")
        click.echo(zoo.resolve(spec).path)
        return
    entries = [entry for entry in zoo.ENTRIES if kind in (None, entry.kind) and _has(entry, word)]
    if as_json:
        click.echo(json.dumps([_described(entry) for entry in entries], indent=2))
    elif entries:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        click.echo(table(entries, width))
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
    by_hand = str(entry.place_by_hand) if entry.place_by_hand else None
    known = asdict(entry) | {"path": path, "size": size, "cached": cached, "refines": entry.refines}
    return known | {"place_by_hand": by_hand}


def table(entries: Sequence[ZooEntry], width: int | None = None) -> str:
    """The entries as text, one section for each kind.

    Args:
        entries: Entries, in their order within a kind.
        width: Characters in a line; None is as many as needed. Columns that do not fit are left out from the right; a
            name that does not fit has a line of its own.
    """
    rows = {entry.name: _row(entry) for entry in entries}
    columns = len(HEADER)
    widths = [max(len(row[i]) for row in [HEADER, *rows.values()]) for i in range(columns)]
    if width is not None and sum(widths) + GAP * (columns - 1) > width:
        columns -= 1  # without the licenses
        while columns > 2 and NARROWEST_NAME + sum(widths[1:columns]) + GAP * (columns - 1) > width:
            columns -= 1
        rest = sum(widths[1:columns]) + GAP * (columns - 1)
        widths[0] = min(widths[0], max(NARROWEST_NAME, width - rest))
    lines = []
    for kind in KINDS:
        chosen = [entry for entry in entries if entry.kind == kind]
        if chosen:
            lines += ["", kind.upper().replace("-", " ") + "S", *_lines(HEADER[:columns], widths)]
            lines += [line for entry in chosen for line in _lines(rows[entry.name][:columns], widths)]
    notes = ["-: unknown; see the publisher's page."]
    if any(entry.refines == "untried" for entry in entries):
        notes.append("untried: format known, but no such file was opened here.")
    if columns < len(HEADER):
        notes.append("More columns: in a wider terminal, or with --json.")
    return "\n".join([*lines[1:], "", *notes])


def _row(entry: ZooEntry) -> tuple[str, ...]:
    known = _described(entry)
    return (
        " = ".join((entry.name, *entry.aliases)),
        entry.refines,
        entry.family,
        str(entry.resolution or "-"),
        _size(known["size"]) if isinstance(known["size"], int) else "-",
        "yes" if known["cached"] else "no",
        entry.license or "-",
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 100_000 else f"{num_bytes / 1e3:.1f} kB"


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """One line, or two where the first cell does not fit."""
    name, *rest = row
    cells = [cell.ljust(width) for cell, width in zip(rest, widths[1:], strict=False)]
    if len(name) <= widths[0]:
        return [(" " * GAP).join([name.ljust(widths[0]), *cells]).rstrip()]
    return [name, (" " * GAP).join([" " * widths[0], *cells]).rstrip()]
