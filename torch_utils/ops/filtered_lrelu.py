"""`filtered_lrelu` of `stylegan_ops`."""

from __future__ import annotations

from stylegan_ops import filtered_lrelu as _filtered_lrelu
from torch_utils.ops._impl import accepts_impl

__all__ = ["filtered_lrelu"]

filtered_lrelu = accepts_impl(_filtered_lrelu.filtered_lrelu)
