"""PyTorch's convolutions. They are differentiable twice, so there is nothing to fix any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

enabled = False  # training scripts set it; nothing depends on it
weight_gradients_disabled = False  # whether a `no_weight_gradients` block is open


@contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """Set `weight_gradients_disabled`, and nothing else.

    Inside, scripts call `torch.autograd.grad` for images or latents, and PyTorch computes the gradients of weights
    only where they are asked for.
    """
    global weight_gradients_disabled
    before = weight_gradients_disabled
    weight_gradients_disabled = before or disable
    try:
        yield
    finally:
        weight_gradients_disabled = before


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`."""
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """`torch.nn.functional.conv_transpose2d`."""
    return torch.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
