"""Leaky ReLU without aliasing, the nonlinearity of StyleGAN3: upsample, activate, downsample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stylegan_ops import autograd, dispatch
from stylegan_ops.arguments import (
    NO_PADDING,
    ONE,
    PaddingLike,
    check_extent,
    check_images,
    filter_size,
    parse_factor,
    parse_padding,
)
from stylegan_ops.backends import pytorch
from stylegan_ops.bias_act import bias_act


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: PaddingLike = 0,
    gain: float = math.sqrt(2),
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """Add the bias, upsample with `fu`, apply clamp(gain * lrelu(x)), downsample with `fd`.

    A pointwise nonlinearity makes frequencies that the grid of pixels cannot hold; at `up` times the resolution
    they can be filtered away. (Karras et al., "Alias-Free Generative Adversarial Networks", arXiv 2106.12423,
    section 3.1.)

    Args:
        x: Images [N, C, H, W] of any floating-point dtype; N may be 0.
        fu: Upsampling filter from `upfirdn2d.setup_filter`; None is the single tap 1.
        fd: Downsampling filter from `upfirdn2d.setup_filter`; None is the single tap 1.
        b: Bias [C], added before padding; None adds nothing.
        up: Upsampling factor of at least 1, the same along both axes; brightness is kept.
        down: Downsampling factor of at least 1.
        padding: Pixels of the upsampled image: one number, `[x, y]` or `[left, right, top, bottom]`; negative crops.
        gain: Factor after the activation.
        slope: Slope of the activation below zero.
        clamp: Limit of the magnitude after the gain; None sets no limit.
        flip_filter: False convolves with both filters, True correlates.

    Returns:
        Images [N, C, H', W'] of x's dtype, differentiable twice.

    Raises:
        TypeError: `x` is not a floating-point tensor, or a filter neither a tensor nor None.
        ValueError: A shape or number makes no sense.
    """
    check_images(x)
    factor, keep, sides = parse_factor(up, "up"), parse_factor(down, "down"), parse_padding(padding)
    for name, size, given in (("up", factor, up), ("down", keep, down)):
        if size.x != size.y:
            raise ValueError(f"{name} must be the same along both axes, not {given!r}")
    if b is not None and b.shape != (x.shape[1],):
        raise ValueError(f"b must have shape [{x.shape[1]}], not {list(b.shape)}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"clamp must be None or at least 0, not {clamp}")
    taps, taps_down = filter_size(fu), filter_size(fd)
    check_extent(x, taps, factor, sides)
    if fu is None and fd is None and factor == keep == ONE and sides == NO_PADDING:
        return bias_act(x, b, act="lrelu", alpha=slope, gain=gain, clamp=clamp)  # Nothing is resampled.
    left, right, top, bottom = sides
    grid = (x.shape[3] * factor.x + left + right - taps.x + 1, x.shape[2] * factor.y + top + bottom - taps.y + 1)
    if grid[0] < taps_down.x or grid[1] < taps_down.y:
        raise ValueError(
            f"the upsampled image is {grid[0]} x {grid[1]} pixels, smaller than the {taps_down.x} x {taps_down.y} taps "
            "that are to slide over it"
        )
    fu, fd = (torch.ones([1, 1], device=x.device) if f is None else f for f in (fu, fd))
    way = dispatch.route("filtered_lrelu", x, fu, fd, b)
    if way[0] is not pytorch:  # The filters of kernels are constants of single precision.
        if autograd.needs_grad(fu, fd) or (x.dtype == torch.float64 and torch.float64 in (fu.dtype, fd.dtype)):
            way = dispatch.PLAIN
        else:
            fu, fd = fu.to(torch.float32), fd.to(torch.float32)
    options = (factor.x, keep.x, *sides, float(gain), float(slope), -1.0 if clamp is None else float(clamp))
    result: Tensor = autograd.run("filtered_lrelu", way, (x, fu, fd, b), (*options, flip_filter))
    return result
