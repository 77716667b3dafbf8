"""Multiplication and addition in one step."""

from __future__ import annotations

import torch
from torch import Tensor


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return a * b + c with the usual broadcasting, without storing the product. Differentiable twice."""
    return torch.addcmul(c, a, b)
