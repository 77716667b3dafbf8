"""Diffusion in EDM's notation: denoisers, the Heun sampler, noise levels, augmentation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refine.diffusion.sampler import HeunOptions, heun_sample

_MODULES = {"HeunOptions": "sampler", "heun_sample": "sampler"}
__all__ = ["HeunOptions", "heun_sample"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"refine.diffusion.{_MODULES[name]}"), name)
