"""Group normalization, SiLU, dropout and a 3 x 3 convolution that keep only their input for the backward pass."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from stylegan_ops import autograd, dispatch
from stylegan_ops.backends import pytorch
from stylegan_ops.conv3x3 import conv3x3
from stylegan_ops.group_norm_silu import check_arguments, group_norm_silu


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

    Where both have kernels, the input of the convolution is computed again in the backward pass, which takes a small
    part of the convolution's time and saves the larger part of the memory.

    Args:
        x: Images [N, C, H, W].
        norm: Arguments of the normalization.
        weight: Filters [out_channels, C, 3, 3] of x's dtype.
        bias: Summand [out_channels] of x's dtype.
        keep: Booleans of x's shape, False where dropout sets zeros; None keeps everything.
        gain: Factor on what is kept.

    Returns:
        Images [N, out_channels, H, W], differentiable any number of times.

    Raises:
        ValueError: As `group_norm_silu`.
    """
    tensors = (x, weight, bias, norm.weight, norm.bias, norm.before, norm.scale, norm.shift, keep)
    if autograd.needs_grad(*tensors):
        check_arguments(x, norm.groups, norm.weight, norm.bias, norm.before, norm.scale, norm.shift)
        way = dispatch.route("norm_conv3x3", *tensors)
        if way[0] is not pytorch:
            return autograd.run("norm_conv3x3", way, tensors, (norm.groups, norm.eps, gain))[0]
    h = group_norm_silu(x, *norm)
    return conv3x3(h if keep is None else h * keep * gain, weight, bias)
