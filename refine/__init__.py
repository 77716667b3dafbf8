"""Refine: a pretrained StyleGAN generator made better with a pretrained diffusion model, and nothing else.

The public names are imported on first use, so that commands which need no torch start at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refine.config import RunConfig
    from refine.metrics.evaluation import evaluate
    from refine.networks.loading import LoadedNetwork, load_gan, load_teacher
    from refine.runs.start import run

__version__: str

__all__ = ["LoadedNetwork", "RunConfig", "evaluate", "load_gan", "load_teacher", "run"]

_MODULES = {
    "LoadedNetwork": "networks.loading",
    "RunConfig": "config",
    "evaluate": "metrics.evaluation",
    "load_gan": "networks.loading",
    "load_teacher": "networks.loading",
    "run": "runs.start",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("refine.version").VERSION
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"refine.{_MODULES[name]}"), name)
