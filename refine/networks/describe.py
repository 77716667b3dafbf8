"""Description of a network pickle, made without running anything in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refine import networks, pickles, zoo
from refine.errors import UserError
from refine.files.atomic import atomic_write, cannot_write
from refine.networks import adm
from refine.networks.loading import published_settings
from refine.pickles import NetworkPickle, NetworkRecord, PersistentObject, PickleError
from refine.pickles.finite import non_finite
from refine.pickles.known_sources import KNOWN_SOURCES
from refine.pickles.records import to_python
from refine.pickles.state_dict import StateDict
from refine.pickles.tensor_records import TensorRecord
from refine.pickles.tree import module_state


def describe(network_pickle: NetworkPickle) -> dict[str, Any]:
    """Everything that `inspect` shows, as plain values that JSON can hold.

    Args:
        network_pickle: Result of `pickles.load`.

    Raises:
        OSError: The file can no longer be read.
        PickleError: A network has implausibly many tensors.
    """
    description = {
        "file": str(network_pickle.path),
        "sha256": pickles.file_sha256(network_pickle.path),
        "bytes": network_pickle.path.stat().st_size,
        "pickle_protocol": network_pickle.protocol,
        "layout": network_pickle.description or None,
        "entries": _describe_entries(network_pickle),
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

    Args:
        network_pickle: Result of `pickles.load`.
        directory: Folder for the files; it is made if needed.

    Raises:
        UserError: The folder cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(directory, error) from error
    sources = {record.source_sha256: record.module_src for record in network_pickle.persistent_objects()}
    files = []
    for sha256, text in sources.items():
        files.append(directory / f"{sha256}.py")
        with atomic_write(files[-1]) as file:
            file.write(text.encode("utf-8", "surrogatepass"))
    return files


def _describe_entries(network_pickle: NetworkPickle) -> dict[Any, dict[str, Any]]:
    """Description of each entry; an object under several names is described once."""
    described: dict[int, dict[str, Any]] = {}
    for value in network_pickle.values():
        if id(value) not in described:
            is_state_dict = isinstance(value, StateDict)
            described[id(value)] = (
                _describe_state_dict(value, network_pickle.path) if is_state_dict else _describe_entry(value)
            )
    return {key: described[id(value)] for key, value in network_pickle.items()}


def _describe_entry(value: Any) -> dict[str, Any]:
    if not isinstance(value, NetworkRecord):
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
        **({"source_sha256": value.source_sha256} if isinstance(value, PersistentObject) else {}),
        "init_args": list(value.init_args),
        "init_kwargs": value.init_kwargs,
    }
    if module_state(value) is not None:
        entry |= _settings(value)
        entry |= _count(value)
    return entry


def _describe_state_dict(record: StateDict, path: Path) -> dict[str, Any]:
    """Description of an ADM network: what its tensors show, and what has to be known besides."""
    architecture = networks.identify(record)
    entry: dict[str, Any] = {
        "class": record.class_name,
        "architecture": architecture.name,
        "role": architecture.role,
        "rebuilt_by_refine": False,
    }
    try:
        shape = adm.shape_of(record.tensors)
        settings = published_settings(zoo.ResolvedFile(path, str(path)), record)
        entry |= {
            "img_channels": shape.img_channels,
            "label_dim": shape.label_dim,
            "img_resolution": settings.image_size or shape.image_size,
            "shape": asdict(shape),
            "settings": settings.known(),
        }
        adm.build(record.tensors, settings)
        entry["rebuilt_by_refine"] = True
    except UserError as error:
        entry["why_not"] = str(error)
    tensors = record.tensors
    not_finite = {} if entry["rebuilt_by_refine"] else _not_finite_of(tensors)
    return entry | {
        "parameters": sum(tensor.num_elements for tensor in tensors.values()),
        "tensors": len(tensors),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
        **({"not_finite": not_finite} if not_finite else {}),
    }


def _not_finite_of(tensors: Mapping[str, TensorRecord]) -> dict[str, int]:
    """As `non_finite`, with one tensor at a time in memory."""
    found = {}
    for name, record in tensors.items():
        value = record.read()
        if value.is_floating_point() and (count := int((~value.isfinite()).sum())):
            found[name] = count
    return found


_SHOWN_SETTINGS = {
    *("img_resolution", "img_channels", "z_dim", "c_dim", "w_dim", "num_ws"),
    *("label_dim", "sigma_min", "sigma_max", "sigma_data"),
}


def _settings(record: NetworkRecord) -> dict[str, Any]:
    """Attributes of a record to show, as plain values."""
    plain = {}
    for name in sorted(_SHOWN_SETTINGS & record.attributes.keys()):
        try:
            plain[name] = to_python(record.attributes[name])
        except PickleError:
            continue
    return plain


def _describe_rebuild(record: NetworkRecord, architecture: networks.Architecture) -> dict[str, Any]:
    """Result of rebuilding a record with Refine's own network."""
    if architecture.build is None:
        return {"rebuilt_by_refine": False}
    try:
        networks.rebuild(record)
    except UserError as error:
        return {"rebuilt_by_refine": False, "why_not": str(error)}
    return {"rebuilt_by_refine": True}


def _count(record: NetworkRecord) -> dict[str, Any]:
    parameters = pickles.named_tensors(record, ["_parameters"])
    tensors = pickles.named_tensors(record)
    not_finite = non_finite(tensors)
    return {
        "parameters": sum(tensor.num_elements for tensor in parameters.values()),
        "tensors": len(tensors),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
        **({"not_finite": not_finite} if not_finite else {}),
    }


def _describe_sources(network_pickle: NetworkPickle) -> list[dict[str, Any]]:
    sources: dict[str, dict[str, Any]] = {}
    for record in network_pickle.persistent_objects():
        source = sources.get(record.source_sha256)
        if source is None:
            source = sources[record.source_sha256] = {
                "sha256": record.source_sha256,
                "bytes": len(record.module_src.encode("utf-8", "surrogatepass")),
                "known": KNOWN_SOURCES.get(record.source_sha256),
                "classes": {},
            }
        source["classes"][record.class_name] = None
    return [source | {"classes": list(source["classes"])} for source in sources.values()]


def format_description(description: dict[str, Any]) -> str:
    """Formats a description as text for a terminal.

    Args:
        description: Result of `describe`.
    """
    lines = [
        f"{description['file']}: {description['bytes']:,} bytes, pickle protocol {description['pickle_protocol']}",
        f"sha256 {description['sha256']}",
        *([f"This is {description['layout']}."] if description["layout"] else []),
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
        if "not_finite" in entry:
            lines.append(f"  WARNING: {format_not_finite(entry['not_finite'])}")
        settings = {name: entry[name] for name in sorted(_SHOWN_SETTINGS & entry.keys()) if entry[name] is not None}
        if settings:
            lines.append("  " + ", ".join(f"{name} {value}" for name, value in settings.items()))
        if "shape" in entry:
            lines.append("  " + ", ".join(f"{name} {json.dumps(value)}" for name, value in entry["shape"].items()))
            known = ", ".join(f"{name}={value}" for name, value in entry["settings"].items())
            lines.append(f"  settings of the zoo for a file of this name: {known or 'none'}")
        if "init_args" not in entry:
            continue
        arguments = [json.dumps(value) for value in entry["init_args"]]
        arguments += [f"{name}={json.dumps(value)}" for name, value in entry["init_kwargs"].items()]
        lines.append(f"  made by {entry['class']}({', '.join(arguments)})")
        if "source_sha256" in entry:
            lines.append(f"  embedded source {entry['source_sha256']}")
    if not description["sources"]:
        return "\n".join(printable(line) for line in lines)
    lines += ["", "Embedded sources (text that Refine passes on and never runs unless told to):"]
    for source in description["sources"]:
        known = source["known"] or "unknown origin"
        lines.append(f"  {source['sha256']}  {source['bytes']:,} bytes, {known}: {', '.join(source['classes'])}")
    return "\n".join(printable(line) for line in lines)


def format_not_finite(counts: dict[str, int]) -> str:
    """Numbers of values that are not finite, by tensor, in words."""
    shown = ", ".join(f"{count:,} in {name}" for name, count in list(counts.items())[:5])
    more = f" and {len(counts) - 5} other tensors" if len(counts) > 5 else ""
    return f"values that are NaN or infinite: {shown}{more}"


def printable(line: str) -> str:
    """Text from a foreign file, unable to move the cursor of a terminal or to hide in it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
