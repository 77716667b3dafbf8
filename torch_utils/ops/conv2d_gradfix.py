"""PyTorch's convolutions. They are differentiable twice, so there is nothing to fix any more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import conv2d, conv_transpose2d

__all__ = ["conv2d", "conv_transpose2d", "enabled", "no_weight_gradients"]

enabled = False  # training scripts set it; nothing depends on it


@contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """Does nothing: autograd computes the weights' gradients only where they are asked for."""
    yield
