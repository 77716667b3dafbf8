"""The resampling operators of `stylegan_ops`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stylegan_ops import upfirdn2d as _upfirdn2d
from torch_utils.ops._impl import accepts_impl

__all__ = ["downsample2d", "filter2d", "setup_filter", "upfirdn2d", "upsample2d"]


def setup_filter(
    f: Any,
    device: torch.device | str = torch.device("cpu"),  # noqa: B008 -- as the original's signature has it
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """`setup_filter` of `stylegan_ops`, on the CPU unless told otherwise."""
    return _upfirdn2d.setup_filter(f, device, normalize, flip_filter, gain, separable)


upfirdn2d = accepts_impl(_upfirdn2d.upfirdn2d)
filter2d = accepts_impl(_upfirdn2d.filter2d)
upsample2d = accepts_impl(_upfirdn2d.upsample2d)
downsample2d = accepts_impl(_upfirdn2d.downsample2d)
