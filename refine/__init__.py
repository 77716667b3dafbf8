"""Refine: a pretrained StyleGAN generator made better with a pretrained diffusion model, and nothing else.

The public names are imported on first use, so that commands which need no torch start at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refine.loading import LoadedNetwork, load_gan, load_teacher

__all__ = ["LoadedNetwork", "load_gan", "load_teacher"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from refine import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
