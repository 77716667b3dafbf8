"""Refine's own networks, and which record of a pickle each of them is."""

from refine.networks.registry import Architecture, identify, rebuild

__all__ = ["Architecture", "identify", "rebuild"]
