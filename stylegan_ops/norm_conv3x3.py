"""Group normalisation, SiLU, dropout and a 3 x 3 convolution, of which only the input is kept for the backward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from stylegan_ops import autograd, conv3x3, group_norm_silu


class Norm(NamedTuple):
    """The arguments of `group_norm_silu` after x."""

    groups: int
    weight: Tensor
    bias: Tensor
    eps: float
    before: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None


def norm_conv3x3(
    x: Tensor, norm: Norm, weight: Tensor, bias: Tensor, keep: Tensor | None = None, gain: float = 1.0
) -> Tensor:
    """Compute conv3x3(group_norm_silu(x, *norm) * keep * gain, weight, bias).

    Where both have kernels, what is convolved is computed again in the backward pass, which takes a small part of the
    convolution's time and saves the larger part of the memory.

    Args:
        x: [N, C, H, W].
        norm: of x.
        weight: [out_channels, C, 3, 3] of x's dtype.
        bias: [out_channels].
        keep: booleans of x's shape, as dropout wants them; None keeps everything.
        gain: factor on what is kept.

    Returns:
        [N, out_channels, H, W].

    Raises:
        ValueError: as `group_norm_silu`.
    """
    tensors = (x, weight, bias, norm.weight, norm.bias, norm.before, norm.scale, norm.shift)
    if autograd.needs_grad(*tensors):
        kernels = conv3x3.kernels_for(x, weight, bias)
        if kernels is not None and group_norm_silu.kernels_for(x, *norm) is kernels:
            return _NormConv3x3.apply((norm.groups, norm.eps, gain, kernels), keep, *tensors)
    return _composed(x, norm, weight, bias, keep, gain)


def _composed(x: Tensor, norm: Norm, weight: Tensor, bias: Tensor, keep: Tensor | None, gain: float) -> Tensor:
    return conv3x3.conv3x3(_drop(group_norm_silu.group_norm_silu(x, *norm), keep, gain), weight, bias)


def _drop(x: Tensor, keep: Tensor | None, gain: float) -> Tensor:
    return x if keep is None else x * keep * gain


class _NormConv3x3(Function):
    @staticmethod
    def forward(ctx: Any, options: Any, keep: Tensor | None, x: Tensor, *others: Tensor | None) -> Tensor:
        groups, eps, gain, kernels = ctx.options = options
        weight, bias, *inputs = (None if t is None else t.contiguous() for t in others)
        y, statistics = kernels.group_norm_silu(x, groups, eps, inputs)
        ctx.save_for_backward(keep, x, *others, statistics)
        return kernels.conv3x3(_drop_in_place(y, keep, gain), weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        groups, eps, gain, kernels = ctx.options
        keep, x, weight, bias, *others, statistics = ctx.saved_tensors
        if torch.is_grad_enabled():  # Second derivatives are wanted: by what knows them.
            tensors = (x, weight, bias, *others)
            inputs: list[Any] = [t.view_as(t) if t is not None and t.requires_grad else t for t in tensors]
            norm = Norm(groups, inputs[3], inputs[4], eps, *inputs[5:])
            y = _composed(inputs[0], norm, inputs[1], inputs[2], keep, gain)
            wanted = [t for t in inputs if t is not None and t.requires_grad]
            grads = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
            return (None, None, *(next(grads) if t is not None and t.requires_grad else None for t in inputs))
        inputs = [None if t is None else t.contiguous() for t in others]
        dy = dy.contiguous()
        dw = db = None
        if ctx.needs_input_grad[3]:
            y, _ = kernels.group_norm_silu(x, groups, eps, inputs)
            dw = kernels.conv3x3_filter_gradient(_drop_in_place(y, keep, gain), dy)
            del y
        if ctx.needs_input_grad[4]:
            db = dy.sum([0, 2, 3])
        dh = _drop_in_place(kernels.conv3x3(dy, weight, transposed=True), keep, gain)
        dx, *grads = kernels.group_norm_silu_grads(dh, x, groups, eps, inputs, statistics)
        return (None, None, dx, dw, db, *grads)


def _drop_in_place(x: Tensor, keep: Tensor | None, gain: float) -> Tensor:
    return x if keep is None else x.mul_(keep).mul_(gain)
