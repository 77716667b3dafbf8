"""Refine's own networks, and which record of a pickle each of them is."""

from refine.networks.rebuilding import rebuild
from refine.networks.registry import Architecture, identify

__all__ = ["Architecture", "identify", "rebuild"]
