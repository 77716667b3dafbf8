"""The resampling operators of `stylegan_ops`."""

from __future__ import annotations

from stylegan_ops import upfirdn2d as _upfirdn2d
from stylegan_ops.upfirdn2d import setup_filter
from torch_utils.ops._impl import accepts_impl

__all__ = ["downsample2d", "filter2d", "setup_filter", "upfirdn2d", "upsample2d"]

upfirdn2d = accepts_impl(_upfirdn2d.upfirdn2d)
filter2d = accepts_impl(_upfirdn2d.filter2d)
upsample2d = accepts_impl(_upfirdn2d.upsample2d)
downsample2d = accepts_impl(_upfirdn2d.downsample2d)
