"""Initial values of weights.

On the meta device there are no values, and asking for them would make PyTorch import its compiler, which takes longer
than loading a network.
"""

from __future__ import annotations

import torch


def normal(*shape: int, std: float = 1.0) -> torch.Tensor:
    """Independent N(0, std^2) values of a shape."""
    values = torch.empty(shape)
    return values if values.is_meta else values.normal_(std=std)


def identity(size: int) -> torch.Tensor:
    """The identity matrix [size, size]."""
    values = torch.zeros(size, size)
    return values if values.is_meta else values.fill_diagonal_(1)
