"""Description of a snapshot of a network of the user's own, made without executing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from refine import pickles
from refine.files.jsonl import to_json
from refine.networks.describe import format_not_finite, printable
from refine.networks.own_snapshot import made_by
from refine.networks.weights_file import AVERAGE, LIVE, each_tensor, read_options


def describe_snapshot(path: Path) -> dict[str, Any]:
    """Everything that `inspect` shows of a snapshot, as plain values that JSON can hold.

    Args:
        path: A network-snapshot-*.safetensors.

    Raises:
        UserError: The file cannot be read.
    """
    options = read_options(path)
    spec = made_by(options)
    entries: dict[str, dict[str, Any]] = {}
    for name, tensor in each_tensor(path):
        key = name.partition(".")[0]
        _add(entries.setdefault(key if key in (LIVE, AVERAGE) else "other", {}), name, tensor)
    return {
        "file": str(path),
        "sha256": pickles.file_sha256(path),
        "bytes": path.stat().st_size,
        "layout": "a snapshot of a network of your own",
        "made_by": None if spec is None else str(spec),
        "entries": {key: entry | {"dtypes": sorted(entry["dtypes"])} for key, entry in entries.items()},
        "options": options,
    }


def _add(entry: dict[str, Any], name: str, tensor: Tensor) -> None:
    entry["elements"] = entry.get("elements", 0) + tensor.numel()
    entry["tensors"] = entry.get("tensors", 0) + 1
    entry.setdefault("dtypes", set()).add(str(tensor.dtype).removeprefix("torch."))
    if tensor.is_floating_point() and (count := int((~tensor.isfinite()).sum())):
        entry.setdefault("not_finite", {})[name] = count


def format_snapshot(description: dict[str, Any]) -> str:
    """Formats a description as text for a terminal.

    Args:
        description: Result of `describe_snapshot`.
    """
    made = description["made_by"]
    lines = [
        f"{description['file']}: {description['bytes']:,} bytes, safetensors",
        f"sha256 {description['sha256']}",
        f"This is {description['layout']}, "
        + (f"which {made} makes (not executed)." if made else "which was given in Python."),
        "",
    ]
    for key, entry in description["entries"].items():
        dtypes = ", ".join(entry["dtypes"])
        lines.append(f"{key}: {entry['elements']:,} values in {entry['tensors']} tensors ({dtypes})")
        if "not_finite" in entry:
            lines.append(f"  WARNING: {format_not_finite(entry['not_finite'])}")
    lines += ["", "Options of the run:"]
    lines += [
        f"  {name}={value if isinstance(value, str) else to_json(value)}"
        for name, value in description["options"].items()
    ]
    return "\n".join(printable(line) for line in lines)
