"""A leaky ReLU that does not alias: upsample, activate, downsample. The non-linearity of StyleGAN3."""

from __future__ import annotations

import math

from torch import Tensor

from stylegan_ops.arguments import PaddingLike, parse_factor
from stylegan_ops.bias_act import bias_act
from stylegan_ops.upfirdn2d import upfirdn2d


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

    A pointwise non-linearity makes frequencies that the grid of pixels cannot hold; at `up` times the resolution
    they can be filtered away. (Karras et al., "Alias-Free Generative Adversarial Networks", arXiv 2106.12423,
    section 3.1.)

    Args:
        x: Images [N, C, H, W] of any floating-point dtype; N may be 0.
        fu: Upsampling filter from `upfirdn2d.setup_filter`; None is the single tap 1.
        fd: Downsampling filter, likewise.
        b: Bias [C], added before padding; None adds nothing.
        up: Factor of at least 1, the same along both axes; brightness is kept.
        down: Factor of at least 1.
        padding: Pixels of the upsampled image: one number, `[x, y]` or `[left, right, top, bottom]`; negative crops.
        gain: Factor after the activation.
        slope: Slope of the activation below zero.
        clamp: Limit of the magnitude after the gain; None is no limit.
        flip_filter: False convolves with both filters, True correlates.

    Returns:
        Images [N, C, H', W'] of x's dtype, differentiable twice.

    Raises:
        TypeError: If `x` is not a floating-point tensor or a filter neither a tensor nor None.
        ValueError: If shapes or numbers are impossible.
    """
    factor = parse_factor(up, "up")
    if factor.x != factor.y:
        raise ValueError(f"up must be the same along both axes, not {up!r}")
    x = bias_act(x, b)
    # The zeros between the pixels darken the image.
    x = upfirdn2d(x, fu, up=up, padding=padding, flip_filter=flip_filter, gain=factor.x * factor.y)
    x = bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp)
    return upfirdn2d(x, fd, down=down, flip_filter=flip_filter)
