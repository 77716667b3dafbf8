"""Initial values of weights."""

from __future__ import annotations

import torch


def normal(*shape: int, std: float = 1.0) -> torch.Tensor:
    """Independent N(0, std^2) values of a shape.

    On the meta device there are no values to draw, and asking for them would make PyTorch import its compiler,
    which takes longer than loading a network.
    """
    values = torch.empty(shape)
    return values if values.is_meta else values.normal_(std=std)
