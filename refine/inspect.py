"""What a network pickle holds, told without running anything in it: `python -m refine.inspect FILE|URL|NAME`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from refine import networks, pickles, zoo
from refine.command_line import Command
from refine.errors import UserError
from refine.files import atomic_write
from refine.pickles import NetworkPickle, PersistentObject, PickleError
from refine.pickles.known_sources import KNOWN_SOURCES
from refine.pickles.records import to_python
from refine.pickles.tree import module_state


def describe(network_pickle: NetworkPickle) -> dict[str, Any]:
    """Everything that `inspect` shows, as plain values that JSON can hold."""
    description = {
        "file": str(network_pickle.path),
        "sha256": pickles.file_sha256(network_pickle.path),
        "bytes": network_pickle.path.stat().st_size,
        "pickle_protocol": network_pickle.protocol,
        "entries": {key: _describe_entry(value) for key, value in network_pickle.items()},
        "sources": _describe_sources(network_pickle),
    }
    return _for_json(description)


def _for_json(value: Any) -> Any:
    """Numbers that JSON does not have (inf, nan) and bytes as text; keys as text."""
    if isinstance(value, dict):
        return {str(key): _for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(item) for item in value]
    if isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


def extract_sources(network_pickle: NetworkPickle, directory: Path) -> list[Path]:
    """Writes every embedded source as `<sha256>.py`, for reading; returns the files.

    Raises:
        UserError: the folder cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {directory} ({error.strerror}): choose another.") from error
    sources = {record.source_sha256: record.module_src for record in network_pickle.persistent_objects()}
    files = []
    for sha256, text in sources.items():
        files.append(directory / f"{sha256}.py")
        with atomic_write(files[-1]) as file:
            file.write(text.encode("utf-8", "surrogatepass"))
    return files


def _describe_entry(value: Any) -> dict[str, Any]:
    if not isinstance(value, PersistentObject):
        try:
            return {"value": to_python(value)}
        except PickleError as error:
            return {"unreadable": str(error)}
    architecture = networks.identify(value)
    entry: dict[str, Any] = {
        "class": value.class_name,
        "architecture": architecture.name,
        "role": architecture.role,
        **_describe_rebuild(value, architecture),
        "source_sha256": value.source_sha256,
        "init_args": list(value.init_args),
        "init_kwargs": value.init_kwargs,
    }
    if module_state(value) is not None:
        entry |= {name: attribute for name, attribute in _settings(value).items() if name in _SHOWN_SETTINGS}
        entry |= _count(value)
    return entry


_SHOWN_SETTINGS = {
    *("img_resolution", "img_channels", "z_dim", "c_dim", "w_dim", "num_ws"),
    *("label_dim", "sigma_min", "sigma_max", "sigma_data"),
}


def _settings(record: PersistentObject) -> dict[str, Any]:
    """The record's attributes that are plain numbers or text."""
    plain = {}
    for name, value in record.attributes.items():
        try:
            plain[name] = to_python(value)
        except PickleError:
            continue
    return plain


def _describe_rebuild(record: PersistentObject, architecture: networks.Architecture) -> dict[str, Any]:
    """Whether Refine rebuilds the record, found out by doing it."""
    if architecture.build is None:
        return {"rebuilt_by_refine": False}
    try:
        networks.rebuild(record)
    except UserError as error:
        return {"rebuilt_by_refine": False, "why_not": str(error)}
    return {"rebuilt_by_refine": True}


def _count(record: PersistentObject) -> dict[str, Any]:
    parameters = pickles.named_tensors(record, ["_parameters"])
    tensors = pickles.named_tensors(record)
    return {
        "parameters": sum(tensor.num_elements for tensor in parameters.values()),
        "tensors": len(tensors),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
    }


def _describe_sources(network_pickle: NetworkPickle) -> list[dict[str, Any]]:
    sources: dict[str, dict[str, Any]] = {}
    for record in network_pickle.persistent_objects():
        source = sources.setdefault(
            record.source_sha256,
            {
                "sha256": record.source_sha256,
                "bytes": len(record.module_src.encode("utf-8", "surrogatepass")),
                "known": KNOWN_SOURCES.get(record.source_sha256),
                "classes": [],
            },
        )
        if record.class_name not in source["classes"]:
            source["classes"].append(record.class_name)
    return list(sources.values())


def _format(description: dict[str, Any]) -> str:
    """The description as text for a terminal."""
    lines = [
        f"{description['file']}: {description['bytes']:,} bytes, pickle protocol {description['pickle_protocol']}",
        f"sha256 {description['sha256']}",
    ]
    for key, entry in description["entries"].items():
        if "class" not in entry:
            lines += ["", f"{key}: {json.dumps(entry.get('value', entry.get('unreadable')))}"]
            continue
        can_do = "rebuilt by Refine" if entry["rebuilt_by_refine"] else "passed through as it is"
        lines += ["", f"{key}: {entry['class']}, {entry['architecture']}; {can_do}"]
        if "why_not" in entry:
            lines.append(f"  not rebuilt because: {entry['why_not']}")
        if "parameters" in entry:
            dtypes = ", ".join(entry["dtypes"])
            lines.append(f"  {entry['parameters']:,} parameters in {entry['tensors']} tensors ({dtypes})")
        settings = {name: entry[name] for name in sorted(_SHOWN_SETTINGS & entry.keys())}
        if settings:
            lines.append("  " + ", ".join(f"{name} {value}" for name, value in settings.items()))
        arguments = [json.dumps(value) for value in entry["init_args"]]
        arguments += [f"{name}={json.dumps(value)}" for name, value in entry["init_kwargs"].items()]
        lines.append(f"  made by {entry['class']}({', '.join(arguments)})")
        lines.append(f"  embedded source {entry['source_sha256']}")
    lines += ["", "Embedded sources (text that Refine passes on and never runs unless told to):"]
    for source in description["sources"]:
        known = source["known"] or "unknown origin"
        lines.append(f"  {source['sha256']}  {source['bytes']:,} bytes, {known}: {', '.join(source['classes'])}")
    return "\n".join(_printable(line) for line in lines)


def _printable(line: str) -> str:
    """Text from a foreign file, unable to move the cursor of a terminal or to hide in it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


@click.command(cls=Command, help=__doc__)
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
    """Command line of `python -m refine.inspect`."""
    network_pickle = pickles.load(zoo.resolve(file).path, trust=trust_pickle)
    with pickles.about(network_pickle.path):
        description = describe(network_pickle)
    click.echo(json.dumps(description, indent=2) if as_json else _format(description))
    if extract_source is not None:
        files = extract_sources(network_pickle, extract_source)
        click.echo(
            f"Wrote {len(files)} embedded source(s) to {extract_source}; read them, do not run them.",
            err=True,
        )


if __name__ == "__main__":
    main()
