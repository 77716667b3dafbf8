"""The public names and signatures of the repositories that Refine drops into, and stand-ins made from them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch

NAMES: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "drop_in" / "public_names.json").read_text(encoding="utf-8")
)
REPOSITORIES = tuple(NAMES)
NO_SIGNATURE = ("class", "module", "attribute")


def signature(text: str) -> inspect.Signature:
    """`(x, b=None)` -> that signature."""
    namespace: dict[str, Any] = {"torch": torch}
    exec(f"def function{text}: pass", namespace)
    return inspect.signature(namespace["function"])


def stand_in_source(names: dict[str, Any]) -> str:
    """A module that offers exactly these names; whatever is called says so by failing."""

    def function(name: str, text: str, indent: str = "") -> str:
        return f"{indent}def {name}{text}:\n{indent}    raise NotImplementedError({name!r} ' of a stand-in')\n"

    source = "import torch\n__all__ = []\n"
    for name, kind in names.items():
        if isinstance(kind, dict):
            source += f"class {name}:\n" + "".join(function(method, text, "    ") for method, text in kind.items())
        elif kind == "class":
            source += f"class {name}(dict):\n    pass\n"
        elif kind == "attribute":
            source += f"{name} = None\n"
        elif kind != "module":
            source += function(name, kind)
    return source + "del torch\n"


def write_stand_ins(repository: str, folder: Path) -> None:
    """`torch_utils` and `dnnlib` in `folder`, with the public names of a repository and nothing more."""
    modules = {"torch_utils": {}, "torch_utils.ops": {}, "dnnlib": {}} | NAMES[repository]
    for module, names in modules.items():
        path = folder / module.replace(".", "/")
        is_package = any(other.startswith(f"{module}.") for other in modules)
        path = path / "__init__.py" if is_package else path.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        source = stand_in_source(names)
        if module == "dnnlib":
            source = "from .util import EasyDict, make_cache_dir_path\nfrom . import util\n"
        path.write_text(source, encoding="utf-8")
