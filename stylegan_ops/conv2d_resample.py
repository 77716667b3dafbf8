"""Convolution joined with resampling: as few pixels as possible pass through the convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_ops.arguments import (
    NO_PADDING,
    Padding,
    PaddingLike,
    Size,
    centered_padding,
    check_extent,
    check_images,
    conv2d_padded,
    filter_size,
    parse_factor,
    parse_padding,
)
from stylegan_ops.conv3x3 import conv3x3
from stylegan_ops.upfirdn2d import upfirdn2d


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: PaddingLike = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Upsample with the filter, pad, convolve with the weight, downsample with the filter.

    The filters and the convolution commute, so they are computed in the order that costs least.

    Args:
        x: Images [N, C, H, W]; N may be 0.
        w: Weight [out_channels, C // groups, kernel_height, kernel_width] of x's dtype.
        f: Filter from `upfirdn2d.setup_filter`, used where up or down exceeds 1; None is the single tap 1.
        up: Factor of at least 1, the same along both axes.
        down: Factor of at least 1, the same along both axes.
        padding: Pixels of the upsampled image, beyond the padding that keeps it centered under the filter: one number,
            `[x, y]` or `[left, right, top, bottom]`; negative crops.
        groups: Groups of channels, as in `torch.nn.functional.conv2d`.
        flip_weight: True correlates with `w`, as PyTorch's convolutions do; False convolves.
        flip_filter: False convolves with `f`, True correlates.

    Returns:
        Images [N, out_channels, H', W'] of x's dtype, differentiable twice.

    Raises:
        TypeError: If `x` is not a floating-point tensor, or `w` of another dtype.
        ValueError: If shapes or numbers are impossible, or the padded image is smaller than the kernel.
    """
    check_images(x)
    _check_weight(x, w, groups)
    factor_up, factor_down = parse_factor(up, "up"), parse_factor(down, "down")
    if factor_up.x != factor_up.y or factor_down.x != factor_down.y:
        raise ValueError(f"up and down must be the same along both axes, not {up!r} and {down!r}")
    sides, taps, kernel = parse_padding(padding), filter_size(f), Size(w.shape[3], w.shape[2])
    window = kernel  # What slides over the upsampled and padded image, all filters together.
    if factor_up.x > 1:
        sides = centered_padding(sides, taps, up=factor_up)
        window = Size(window.x + taps.x - 1, window.y + taps.y - 1)
    if factor_down.x > 1:
        sides = centered_padding(sides, taps, down=factor_down)
        window = Size(window.x + taps.x - 1, window.y + taps.y - 1)
    check_extent(x, window, factor_up, sides)
    correlated_w = w if flip_weight else w.flip([2, 3])

    if factor_up.x > 1:
        gain = factor_up.x * factor_up.y  # The zeros between the pixels darken the image.
        if kernel == (1, 1):
            x = conv2d_padded(x, w, NO_PADDING, groups=groups)
            x = upfirdn2d(x, f, up=factor_up, padding=sides, flip_filter=flip_filter, gain=gain)
        else:
            # The full convolution of the zero-stuffed image; see upfirdn2d for where its pixels lie.
            convolved_w = w.flip([2, 3]) if flip_weight else w
            x = torch.conv_transpose2d(x, _swap_channels(convolved_w, groups), stride=factor_up.x, groups=groups)
            rest = Padding(
                sides.left - (kernel.x - 1),
                sides.right - (kernel.x - factor_up.x),
                sides.top - (kernel.y - 1),
                sides.bottom - (kernel.y - factor_up.y),
            )
            x = upfirdn2d(x, f, padding=rest, flip_filter=flip_filter, gain=gain)
        return x if factor_down.x == 1 else upfirdn2d(x, f, down=factor_down, flip_filter=flip_filter)

    if factor_down.x > 1:
        if kernel == (1, 1):
            x = upfirdn2d(x, f, down=factor_down, padding=sides, flip_filter=flip_filter)
            return conv2d_padded(x, w, NO_PADDING, groups=groups)
        x = upfirdn2d(x, f, padding=sides, flip_filter=flip_filter)
        return conv2d_padded(x, correlated_w, NO_PADDING, stride=factor_down, groups=groups)

    if groups == 1 and sides == (1, 1, 1, 1) and kernel == (3, 3):
        return conv3x3(x, correlated_w)
    return conv2d_padded(x, correlated_w, sides, groups=groups)


def _swap_channels(w: Tensor, groups: int) -> Tensor:
    """Rearrange a weight [out, in // groups, ...] to the [in, out // groups, ...] of `conv_transpose2d`."""
    return w.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _check_weight(x: Tensor, w: Tensor, groups: int) -> None:
    if not isinstance(w, Tensor) or w.dtype != x.dtype:
        kind = str(w.dtype) if isinstance(w, Tensor) else type(w).__name__
        raise TypeError(f"w must be a tensor of x's dtype {x.dtype}, not {kind}")
    if w.ndim != 4 or w.numel() == 0:
        raise ValueError(f"w must have shape [out_channels, in_channels, height, width], not {list(w.shape)}")
    if groups < 1 or w.shape[0] % groups or x.shape[1] != w.shape[1] * groups:
        raise ValueError(f"x with {x.shape[1]} channels does not fit w {list(w.shape)} in {groups} groups")
