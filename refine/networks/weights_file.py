"""Snapshots of networks without a pickle: weights as safetensors, with the options of the run.

https://github.com/huggingface/safetensors. The tensors are named `G.<name>` (live generator) and `G_ema.<name>` (moving
average), with the names of the module's state dict; the header has the options of the run as JSON, under
`refine_options`. Nothing in such a file could be executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from refine.errors import UserError
from refine.files.atomic import atomic_write
from refine.version import VERSION

SUFFIX = ".safetensors"
LIVE, AVERAGE = "G", "G_ema"
OPTIONS = "refine_options"  # entry of the header


def _library() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise UserError("Snapshots of networks without a pickle need safetensors: pip install safetensors.") from error
    return safetensors


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Context with the library, whose errors become one sentence."""
    safetensors = _library()
    try:
        yield safetensors
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{os.fspath(path)} cannot be read as safetensors ({error}): give a network-snapshot-*{SUFFIX}."
        ) from error


def write_weights(path: Path, live: Mapping[str, Tensor], average: Mapping[str, Tensor], options: str) -> None:
    """Writes a snapshot.

    Args:
        path: File to write; it appears complete or not at all.
        live: State dict of the live generator.
        average: State dict of the moving average.
        options: Options of the run as JSON.

    Raises:
        UserError: The file cannot be written.
    """
    safetensors = _library()
    tensors: dict[str, Tensor] = {}
    for key, weights in ((LIVE, live), (AVERAGE, average)):
        tensors |= {f"{key}.{name}": tensor.contiguous().clone() for name, tensor in weights.items()}
    data = safetensors.torch.save(tensors, metadata={"format": "pt", "refine": VERSION, OPTIONS: options})
    with atomic_write(path) as file:
        file.write(data)


def read_weights(path: str | os.PathLike[str]) -> dict[str, dict[str, Tensor]]:
    """State dicts in a snapshot, by `G` and `G_ema`; `G_ema` alone for a plain file with a state dict.

    Raises:
        UserError: The file cannot be read.
    """
    with _reading(path) as safetensors:
        tensors = safetensors.torch.load_file(path)
    if not all(name.startswith((f"{LIVE}.", f"{AVERAGE}.")) for name in tensors):
        return {AVERAGE: tensors}
    return {
        key: {name.removeprefix(f"{key}."): t for name, t in tensors.items() if name.startswith(f"{key}.")}
        for key in (LIVE, AVERAGE)
    }


def each_tensor(path: str | os.PathLike[str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a safetensors file by name, read one after the other.

    Raises:
        UserError: The file cannot be read.
    """
    with _reading(path) as safetensors, safetensors.safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no dict
            yield name, file.get_tensor(name)


def read_options(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Options of the run that wrote a snapshot; empty for another safetensors file.

    Raises:
        UserError: The file cannot be read.
    """
    with _reading(path) as safetensors, safetensors.safe_open(path, framework="pt") as file:
        options = json.loads((file.metadata() or {}).get(OPTIONS, "{}"))
    return dict(options) if isinstance(options, dict) else {}


def load_weights(module: nn.Module, path: str | os.PathLike[str], key: str = AVERAGE) -> nn.Module:
    """Gives a module of your own the weights of a snapshot.

    Args:
        module: Module of the architecture that was refined; it is changed.
        path: A network-snapshot-*.safetensors.
        key: `G_ema` for the moving average, `G` for the live generator.

    Returns:
        The module.

    Raises:
        UserError: The file cannot be read, or its weights are those of another architecture.
    """
    found = read_weights(path)
    if not found.get(key):
        raise UserError(f"{os.fspath(path)} has no weights of {key}: use {' or '.join(name for name in found)}.")
    load_state(module, found[key], os.fspath(path))
    return module


def load_state(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Loads a state dict.

    Args:
        module: Module to change.
        weights: State dict.
        where: Origin of the weights, for the message.

    Raises:
        UserError: The weights are those of another architecture; the message names the first difference.
    """
    own = module.state_dict()
    for name, tensor in weights.items():
        if name not in own:
            raise UserError(f"{where} has weights {name}, which the network has not: give the same architecture.")
        if own[name].shape != tensor.shape:
            raise UserError(
                f"{where} has {name} with shape {list(tensor.shape)}, and the network {list(own[name].shape)}: give "
                "the same architecture."
            )
    for name in own:
        if name not in weights:
            raise UserError(f"{where} has no weights {name}, which the network has: give the same architecture.")
    module.load_state_dict(dict(weights))
