"""Group normalization, scale and shift, and SiLU in one step, as they stand before the convolutions of U-Nets."""

from __future__ import annotations

from torch import Tensor

from stylegan_ops import autograd, dispatch
from stylegan_ops.backends import pytorch


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

    Contiguous float32 tensors on the CPU with at least 64 pixels take one pass over the memory, and for the backward
    pass nothing of the size of x is kept but x. Everything else is left to PyTorch: other tensors, transforms and
    autocast; there is no kernel for GPUs yet. Both agree within 1e-5 of the largest value.

    Args:
        x: Input [N, C, ...].
        groups: Number of groups of neighboring channels that are normalized together; divides C.
        weight: Factor [C] of x's dtype.
        bias: Summand [C] of x's dtype.
        eps: Number added to variances.
        before: Summand [N, C] of x's dtype for all pixels of a channel, before the normalization; None adds nothing.
        scale: Factor [N, C] of x's dtype, less one, after the normalization; None leaves it out.
        shift: Summand [N, C] of x's dtype, after the normalization; None adds nothing.

    Returns:
        A tensor of x's shape and dtype, differentiable any number of times.

    Raises:
        ValueError: C is not divisible by `groups`, or a tensor has another shape.
    """
    check_arguments(x, groups, weight, bias, before, scale, shift)
    tensors = (x, weight, bias, before, scale, shift)
    way = dispatch.route("group_norm_silu", *tensors)
    if way[0] is pytorch:
        return pytorch.silu_of_group_norm(*tensors, groups, eps)
    return autograd.run("group_norm_silu", way, tensors, (groups, eps))[0]


def check_arguments(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    before: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> None:
    """Raise ValueError unless `group_norm_silu` takes these arguments."""
    n, channels = x.shape[:2]
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels cannot be divided into {groups} groups")
    for name, tensor in (("before", before), ("scale", scale), ("shift", shift)):
        if tensor is not None and tensor.shape != (n, channels):
            raise ValueError(f"{name} must have shape [{n}, {channels}], not {list(tensor.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != (channels,):
            raise ValueError(f"{name} must have shape [{channels}], not {list(tensor.shape)}")
