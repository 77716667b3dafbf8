"""The operators as functions, in one place: `from stylegan_ops.functional import upfirdn2d`."""

from __future__ import annotations

from stylegan_ops.attention import attention
from stylegan_ops.bias_act import bias_act
from stylegan_ops.conv1x1 import conv1x1
from stylegan_ops.conv2d_resample import conv2d_resample
from stylegan_ops.conv3x3 import conv3x3
from stylegan_ops.filtered_lrelu import filtered_lrelu
from stylegan_ops.fma import fma
from stylegan_ops.group_norm_silu import group_norm_silu
from stylegan_ops.modulated_conv2d import modulated_conv2d
from stylegan_ops.norm_conv3x3 import Norm, norm_conv3x3
from stylegan_ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

__all__ = [
    "Norm",
    "attention",
    "bias_act",
    "conv1x1",
    "conv2d_resample",
    "conv3x3",
    "downsample2d",
    "filter2d",
    "filtered_lrelu",
    "fma",
    "group_norm_silu",
    "modulated_conv2d",
    "norm_conv3x3",
    "setup_filter",
    "upfirdn2d",
    "upsample2d",
]
