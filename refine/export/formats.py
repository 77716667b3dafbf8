"""Formats that a generator can be written in. Importing this table imports neither torch nor a format's packages."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from refine.errors import UserError


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        module: Module of `refine.export` that writes it.
        suffix: Ending of its files.
        packages: Packages of the extra `export` that the module imports.
        comes_back: True if the weights of a file can be brought back into a pickle.
    """

    module: str
    suffix: str
    packages: tuple[str, ...] = ()
    comes_back: bool = False


FORMATS: dict[str, Format] = {
    "safetensors": Format("safetensors_file", ".safetensors", ("safetensors",), comes_back=True),
    "rosinality": Format("rosinality", ".pt", comes_back=True),
    "onnx": Format("onnx_file", ".onnx", ("onnx", "onnxscript", "onnxruntime")),
    "pkl-ema": Format("compact_pickle", ".pkl"),
}


def module_of(kind: str) -> Any:
    """The module that writes a format; a key of `FORMATS`.

    Raises:
        UserError: A package is missing.
    """
    chosen = FORMATS[kind]
    missing = [package for package in chosen.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"--format={kind} needs {', '.join(missing)}: python -m pip install {' '.join(missing)}")
    return importlib.import_module(f"refine.export.{chosen.module}")
