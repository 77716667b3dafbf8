"""Convolution with weights that a style scales for each sample, the center of StyleGAN2."""

from __future__ import annotations

import math
from bisect import bisect_right

import torch
from torch import Tensor

from stylegan_ops import dispatch
from stylegan_ops.arguments import NO_PADDING, PaddingLike, check_images, parse_padding
from stylegan_ops.backends import pytorch
from stylegan_ops.conv2d_resample import conv2d_resample
from stylegan_ops.fma import fma
from stylegan_ops.modulated_conv2d_table import BATCHES, FUSED_SPEEDUP


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: PaddingLike = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused_modconv: bool | None = None,
    gain: Tensor | None = None,
) -> Tensor:
    """Convolve each sample with its own weight, then add noise.

    The weight of sample n is w = weight * styles[n] over the input channels; demodulation divides each of its
    output channels by sqrt(sum w^2 + 1e-8), so that unit variance comes out as unit variance. (Karras et al.,
    "Analyzing and Improving the Image Quality of StyleGAN", arXiv 1912.04958, equations 1 and 3.)

    Args:
        x: Images [N, in_channels, H, W]; N may be 0. Weight, styles and noise may have a wider dtype.
        weight: Filters [out_channels, in_channels, kernel_height, kernel_width].
        styles: Factors [N, in_channels] of the weights.
        noise: Summand that broadcasts against the result ([H', W'] or [N, 1, H', W']); None adds nothing.
        up: Upsampling factor, as in `conv2d_resample`.
        down: Downsampling factor, as in `conv2d_resample`.
        padding: Padding, as in `conv2d_resample`.
        resample_filter: Filter `f` of `conv2d_resample`.
        demodulate: Whether to normalize the weights.
        flip_weight: True correlates with the weights, False convolves, as in `conv2d_resample`.
        fused_modconv: True scales the weights and convolves all samples in one grouped convolution; False
            scales the images before and after an ordinary one. Both give the same result, up to rounding; None
            takes the form that a benchmark found to be faster for such a layer.
        gain: Factor [] on the result, before noise; None is 1.

    Returns:
        Images [N, out_channels, H', W'] of x's dtype, differentiable twice.

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: A shape or number makes no sense.
    """
    check_images(x)
    batch, in_channels = x.shape[:2]
    if weight.ndim != 4 or weight.shape[1] != in_channels or weight.numel() == 0:
        raise ValueError(
            f"weight must have shape [out_channels, {in_channels}, height, width], not {list(weight.shape)}"
        )
    if styles.shape != (batch, in_channels):
        raise ValueError(f"styles must have shape [{batch}, {in_channels}], not {list(styles.shape)}")

    if fused_modconv is None:
        fused_modconv = fused_is_faster(x, weight, styles, up, down)
    if x.dtype == torch.float16 and demodulate:
        # Demodulation cancels any factor on weights or styles; these keep the sums in float16's range.
        fan_in = weight[0].numel()
        tiny = torch.finfo(torch.float16).tiny  # A channel of zeros stays zero.
        weight = weight / weight.abs().amax(dim=[1, 2, 3], keepdim=True).clamp(min=tiny) / math.sqrt(fan_in)
        styles = styles / styles.abs().amax(dim=1, keepdim=True).clamp(min=tiny)
    scales = None
    if demodulate:
        # sum over i, k of (weight[o, i, k] * styles[n, i])^2, without the tensor of all those products
        scales = (styles.square() @ weight.square().sum(dim=[2, 3]).t() + 1e-8).rsqrt()  # [N, out_channels]
    if gain is not None:
        scales = gain.expand(batch, len(weight)) if scales is None else scales * gain

    def convolve(images: Tensor, w: Tensor, groups: int) -> Tensor:
        return conv2d_resample(
            images,
            w.to(x.dtype),
            f=resample_filter,
            up=up,
            down=down,
            padding=padding,
            groups=groups,
            flip_weight=flip_weight,
        )

    if fused_modconv and batch > 0:
        w = weight * styles[:, None, :, None, None]  # [N, out_channels, in_channels, height, width]
        if scales is not None:
            w = w * scales[:, :, None, None, None]
        if weight[0, 0].numel() == 1 and up == 1 == down and parse_padding(padding) == NO_PADDING:
            # A matrix for each sample; many groups of a few channels are what convolutions are slow at.
            y = torch.bmm(w.flatten(2).to(x.dtype), x.flatten(2)).unflatten(2, x.shape[2:])
            return y if noise is None else y + noise.to(y.dtype)
        y = convolve(x.reshape(1, -1, *x.shape[2:]), w.flatten(0, 1), groups=batch)
        y = y.reshape(batch, -1, *y.shape[2:])
        return y if noise is None else y + noise.to(y.dtype)

    y = convolve(x * styles.to(x.dtype)[:, :, None, None], weight, groups=1)
    if scales is None:
        return y if noise is None else y + noise.to(y.dtype)
    scales = scales.to(y.dtype)[:, :, None, None]
    return y * scales if noise is None else fma(y, scales, noise.to(y.dtype))


def fused_is_faster(x: Tensor, weight: Tensor, styles: Tensor, up: int, down: int) -> bool:
    """Look up which form of `modulated_conv2d` a benchmark found to be faster for the nearest layer that it ran.

    On a type of device where it did not run, training scales images: the fused form keeps weights of every sample for
    the backward pass, gigabytes for a batch of 128. Inference scales weights, but for half precision, where one
    convolution of all samples can use tensor cores.
    """
    if torch.compiler.is_compiling():
        return False  # As many groups as samples would tie the compiled code to one batch size.
    if up == down == 1 and dispatch.route("conv3x3", x, weight)[0] is not pytorch:
        return False  # One convolution of all samples has a faster kernel.
    device = FUSED_SPEEDUP.get(x.device.type)
    training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or styles.requires_grad)
    if device is None:
        return not training and (x.dtype.itemsize > 2 or len(x) == 1)
    kind = "1x1" if weight[0, 0].numel() == 1 else "3x3 up" if up > 1 else "3x3"
    resolutions = device["training" if training else "inference"][kind]
    measured = sorted(resolutions)
    resolution = max(x.shape[2], x.shape[3]) * up // down
    row = resolutions[measured[max(0, bisect_right(measured, resolution) - 1)]]
    return row[max(0, bisect_right(BATCHES, x.shape[0]) - 1)] > 1
