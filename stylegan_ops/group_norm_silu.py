"""Group normalisation, scale and shift, and SiLU in one step: what stands before the convolutions of U-Nets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn import functional

from stylegan_ops import autograd

MIN_PIXELS = 64  # of a channel; for fewer the kernels are no faster


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    before: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Compute silu(group_norm(x + before; weight, bias) * (1 + scale) + shift).

    Contiguous float32 tensors on the CPU, of at least 64 pixels, take one pass over the memory, and for the backward
    pass nothing of their size is kept but x. All else is done by plain PyTorch: other tensors, second derivatives,
    compilers, transforms and autocast; there is no kernel for GPUs yet. Both agree within 1e-5 of the largest value.

    Args:
        x: [N, C, ...].
        groups: of neighbouring channels that are normalised together; divides C.
        weight: [C] of x's dtype.
        bias: [C], likewise.
        eps: added to variances.
        before: [N, C] of x's dtype, added to all pixels of a channel; None adds nothing.
        scale: [N, C], likewise.
        shift: [N, C], likewise.

    Returns:
        A tensor of x's shape and dtype; differentiable any number of times.

    Raises:
        ValueError: if C is not divisible by `groups`, or a tensor has another shape.
    """
    kernels = kernels_for(x, groups, weight, bias, eps, before, scale, shift)
    if kernels is None:
        return plain(x, groups, eps, weight, bias, before, scale, shift)
    tensors = (weight, bias, before, scale, shift)
    inputs = tuple(None if t is None else t.contiguous() for t in tensors)
    if autograd.needs_grad(x, *tensors):
        return _GroupNormSilu.apply((groups, eps, kernels), x, *inputs)
    return kernels.group_norm_silu(x, groups, eps, inputs)[0]


def kernels_for(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    before: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Any:
    """The kernels that compute `group_norm_silu` of the same arguments, or None.

    Raises:
        ValueError: as `group_norm_silu`.
    """
    n, channels = x.shape[:2]
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels cannot be divided into {groups} groups")
    for name, tensor in (("before", before), ("scale", scale), ("shift", shift)):
        if tensor is not None and tensor.shape != (n, channels):
            raise ValueError(f"{name} must have shape [{n}, {channels}], not {list(tensor.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != (channels,):
            raise ValueError(f"{name} must have shape [{channels}], not {list(tensor.shape)}")

    tensors = (x, weight, bias, before, scale, shift)
    large = x.numel() >= max(1, n * channels * MIN_PIXELS)
    if not large or not x.is_contiguous() or any(t is not None and t.dtype != torch.float32 for t in tensors):
        return None
    kernels, differentiable = autograd.route(*tensors)
    if differentiable or not hasattr(kernels, "group_norm_silu") or torch.is_autocast_enabled(x.device.type):
        return None
    return kernels


def plain(
    x: Tensor,
    groups: int,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    before: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    """The same in plain PyTorch: what it means."""
    shape = (*x.shape[:2], *[1] * (x.ndim - 2))
    if before is not None:
        x = x + before.reshape(shape)
    y = torch.group_norm(x, groups, weight, bias, eps)
    if scale is not None:
        y = y * (1 + scale.reshape(shape))
    if shift is not None:
        y = y + shift.reshape(shape)
    # In its own memory where no gradient wants what it was.
    return functional.silu(y, inplace=not torch.is_grad_enabled())


class _GroupNormSilu(Function):
    @staticmethod
    def forward(ctx: Any, options: Any, x: Tensor, *inputs: Tensor | None) -> Tensor:
        groups, eps, kernels = ctx.options = options
        y, statistics = kernels.group_norm_silu(x, groups, eps, inputs)
        ctx.save_for_backward(x, *inputs, statistics)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        groups, eps, kernels = ctx.options
        x, *inputs, statistics = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (None, *_differentiable_grads(dy, x, inputs, groups, eps))
        return (None, *kernels.group_norm_silu_grads(dy.contiguous(), x, groups, eps, inputs, statistics))


def _differentiable_grads(
    dy: Tensor, x: Tensor, others: list[Tensor | None], groups: int, eps: float
) -> tuple[Tensor | None, ...]:
    """By plain PyTorch's autograd, in views of the inputs, behind which is whatever these were computed from."""
    inputs: list[Any] = [t.view_as(t) if t is not None and t.requires_grad else t for t in (x, *others)]
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    y = plain(inputs[0], groups, eps, *inputs[1:])
    grads = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return tuple(next(grads) if t is not None and t.requires_grad else None for t in inputs)
