"""Refine's own networks, rebuilt from the records of pickles."""

from refine.networks.rebuilding import rebuild
from refine.networks.registry import Architecture, identify

__all__ = ["Architecture", "identify", "rebuild"]
