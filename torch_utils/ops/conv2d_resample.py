"""`conv2d_resample` of `stylegan_ops`."""

from stylegan_ops.conv2d_resample import conv2d_resample

__all__ = ["conv2d_resample"]
