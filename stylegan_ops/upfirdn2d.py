"""Resampling with a finite impulse response filter: upsample, pad, filter, downsample a batch of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stylegan_ops import autograd, dispatch
from stylegan_ops.arguments import (
    Factor,
    PaddingLike,
    centered_padding,
    check_extent,
    check_images,
    filter_size,
    parse_factor,
    parse_padding,
)
from stylegan_ops.backends import pytorch

SEPARABLE_TAPS = 8  # Part of the checkpoint format: shorter filters are stored as their outer product.


def setup_filter(
    f: float | Sequence[Any] | Tensor | Any | None,
    device: torch.device | str | None = None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """Make the filter tensor that the other functions take.

    Args:
        f: Taps: a number, a sequence or array [taps] (applied along both axes) or [height, width]; None is 1.
        device: Device of the result; None for the tensor's own device or PyTorch's default.
        normalize: Divide so that the taps of the 2-D filter sum to 1.
        flip_filter: Reverse the taps.
        gain: Brightness factor of the 2-D filter.
        separable: True returns [taps], False the outer product [taps, taps] of a 1-D filter with itself;
            None keeps 1-D from 8 taps on, as the checkpoints do.

    Returns:
        A float32 tensor [taps] or [height, width].

    Raises:
        ValueError: If `f` has more than two dimensions or no taps, if a 2-D filter is asked to be separable,
            if taps to be normalized sum to zero, or if the gain of a separable filter is negative.
    """
    if device is None:
        device = f.device if isinstance(f, Tensor) else torch.empty(0).device
    # Computed where the values are: on the meta device, some of these operations load PyTorch's compiler.
    source = f.device if isinstance(f, Tensor) else "cpu"
    taps = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32, device=source)
    if taps.ndim > 2 or taps.numel() == 0:
        raise ValueError(f"f must be a number or have shape [taps] or [height, width], not {list(taps.shape)}")
    if taps.ndim == 2 and separable:
        raise ValueError(f"a filter of shape {list(taps.shape)} is two-dimensional and cannot be separable")
    if taps.ndim == 0:
        taps = taps.reshape(1)
    if separable is None:
        separable = taps.ndim == 1 and taps.numel() >= SEPARABLE_TAPS
    if taps.ndim == 1 and not separable:
        taps = torch.outer(taps, taps)
    if normalize:
        total = taps.sum()
        if total == 0:
            raise ValueError("the taps of f sum to zero and cannot be normalized: pass normalize=False")
        taps = taps / total
    if flip_filter:
        taps = taps.flip(list(range(taps.ndim)))
    if taps.ndim == 1:  # It is applied twice.
        if gain < 0:
            raise ValueError(f"the gain of a separable filter must not be negative, and is {gain}")
        gain = math.sqrt(gain)
    return (taps * gain).to(device)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Factor = 1,
    down: Factor = 1,
    padding: PaddingLike = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Upsample, pad, filter and downsample each channel of a batch of images.

    In this order: put up - 1 zeros behind every pixel along each axis, pad with zeros, convolve with `f`
    where it overlaps the image entirely, keep every down-th pixel beginning with the first.

    Args:
        x: Images [N, C, H, W] of any floating-point dtype; N may be 0.
        f: Filter [taps] (applied along both axes) or [height, width] from `setup_filter`; None is the tap 1.
        up: Factor of at least 1, or `[x, y]`.
        down: Factor of at least 1, or `[x, y]`.
        padding: Pixels of the upsampled image, one number, `[x, y]` or `[left, right, top, bottom]`;
            negative crops.
        flip_filter: False convolves, True correlates.
        gain: Factor on the result.

    Returns:
        Images [N, C, H', W'] of x's dtype, twice differentiable; H' = (H * up + top + bottom - height) // down + 1,
            and W' likewise.

    Raises:
        TypeError: If `x` is not a floating-point tensor or `f` neither a tensor nor None.
        ValueError: If shapes or numbers are impossible, or the padded image is smaller than the filter.
    """
    check_images(x)
    insert, keep, sides = parse_factor(up, "up"), parse_factor(down, "down"), parse_padding(padding)
    check_extent(x, filter_size(f), insert, sides)
    if f is None:
        f = torch.ones([1, 1], device=x.device)
    return _resample(x, f, (*insert, *keep, *sides, flip_filter, gain))


def _resample(x: Tensor, f: Tensor, options: tuple[Any, ...]) -> Tensor:
    way = dispatch.route("upfirdn2d", x, f)
    # The filters of kernels are constants of single precision.
    if way[0] is not pytorch and (f.dtype != torch.float32 or f.requires_grad):
        if f.dtype == torch.float64 == x.dtype or autograd.needs_grad(f):
            way = dispatch.PLAIN
        else:
            f = f.to(torch.float32)
    return autograd.run("upfirdn2d", way, (x, f), options)


def filter2d(
    x: Tensor, f: Tensor | None, padding: PaddingLike = 0, flip_filter: bool = False, gain: float = 1
) -> Tensor:
    """Filter images [N, C, H, W], keeping their size plus `padding`. Arguments as for `upfirdn2d`."""
    sides = centered_padding(parse_padding(padding), filter_size(f))
    return upfirdn2d(x, f, padding=sides, flip_filter=flip_filter, gain=gain)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: Factor = 2,
    padding: PaddingLike = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Enlarge images [N, C, H, W] to [N, C, H * up, W * up] plus `padding`, keeping their brightness.

    Arguments as for `upfirdn2d`; `padding` counts pixels of the result.
    """
    factor = parse_factor(up, "up")
    sides = centered_padding(parse_padding(padding), filter_size(f), up=factor)
    return upfirdn2d(x, f, up=factor, padding=sides, flip_filter=flip_filter, gain=gain * factor.x * factor.y)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: Factor = 2,
    padding: PaddingLike = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Shrink images [N, C, H, W] to [N, C, H // down, W // down]; `padding` counts pixels of `x`.

    Arguments as for `upfirdn2d`.
    """
    factor = parse_factor(down, "down")
    sides = centered_padding(parse_padding(padding), filter_size(f), down=factor)
    return upfirdn2d(x, f, down=factor, padding=sides, flip_filter=flip_filter, gain=gain)
