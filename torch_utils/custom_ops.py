"""Operators that a repository brings as C++ and CUDA sources, built by PyTorch."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

verbosity = "brief"  # "none", "brief" or "full": what `get_plugin` prints

# What the original repositories build, and which modules do the same here.
_REPLACED = {
    "bias_act_plugin": "torch_utils.ops.bias_act",
    "upfirdn2d_plugin": "torch_utils.ops.upfirdn2d",
    "filtered_lrelu_plugin": "torch_utils.ops.filtered_lrelu",
}
_plugins: dict[str, Any] = {}


def get_plugin(
    module_name: str,
    sources: Sequence[str | os.PathLike[str]],
    headers: Sequence[str | os.PathLike[str]] | None = None,
    source_dir: str | os.PathLike[str] | None = None,
    **build_kwargs: Any,
) -> Any:
    """Builds an extension module, once for each content of its sources, and imports it.

    Args:
        module_name: Name of the extension.
        sources: C++ and CUDA files.
        headers: Files that they include.
        source_dir: Folder that relative names start from; None is the current one.
        **build_kwargs: Passed on to `torch.utils.cpp_extension.load`.

    Raises:
        RuntimeError: If there is no such module, with the reason. For StyleGAN's own three plugins there never is
            one: `stylegan_ops` builds other kernels for them, and the modules of `torch_utils.ops` call those.
    """
    if module_name in _REPLACED:
        raise RuntimeError(
            f"{module_name} is not built under this torch_utils, because its {_REPLACED[module_name]} computes the "
            "same: replace torch_utils/ops as a whole, or call that module."
        )
    folder = Path(source_dir or ".")
    files = [folder / name for name in sources]
    included = [folder / name for name in headers or ()]
    for file in (*files, *included):
        if not file.is_file():
            raise RuntimeError(f"{module_name} cannot be built because {file} is not there.")
    digest = hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in (*files, *included)))
    key = f"{module_name}-{digest.hexdigest()[:32]}"
    if key not in _plugins:
        if verbosity != "none":
            print(f"Setting up PyTorch plugin {module_name}...", flush=True)
        _plugins[key] = _build(module_name, key, files, included, build_kwargs)
    return _plugins[key]


def _build(module_name: str, key: str, files: list[Path], headers: list[Path], build_kwargs: dict[str, Any]) -> Any:
    cpp_extension = importlib.import_module("torch.utils.cpp_extension")  # seconds: only where it is needed
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions" / "plugins")
    folder = root / key
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*files, *headers):
        shutil.copyfile(file, folder / file.name)
    try:
        return cpp_extension.load(
            name=module_name,
            sources=[str(folder / file.name) for file in files],
            build_directory=str(folder),
            verbose=verbosity == "full",
            **build_kwargs,
        )
    except Exception as error:
        raise RuntimeError(f"{module_name} cannot be built here: {_first_complaint(error)}") from error


def _first_complaint(error: Exception) -> str:
    """The compiler's first error, which PyTorch's message holds somewhere; else the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if re.search(r"\berror(:| C\d+)", line)), lines[0])
