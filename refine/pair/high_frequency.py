"""Detail that the teacher cannot see: what of an image is lost when it is reduced to the teacher's resolution.

A teacher at 64 pixels says nothing about it, and yet it drifts while the layers below are trained, because features
feed the layers above. It is logged, and `--anchor` holds it to that of the starting generator.
"""

from __future__ import annotations

from torch import Tensor

from refine.pair.bridge import Bridge
from refine.pair.resize import resize


def high_pass(images: Tensor, bridge: Bridge) -> Tensor:
    """Images minus themselves reduced to the teacher's resolution and enlarged again; differentiable.

    Args:
        images: [N, C, H, H] as the generator draws them.
        bridge: to the teacher.

    Returns:
        [N, C, H, H]; zeros where the teacher sees every pixel.
    """
    return images - resize(bridge.images(images), images.shape[-1], bridge.resample)


def anchor_loss(images: Tensor, start_images: Tensor, bridge: Bridge) -> Tensor:
    """How far detail moved from that of the starting generator at the same latents.

    Args:
        images: [N, C, H, H], differentiable.
        start_images: [N, C, H, H], from the starting generator.
        bridge: to the teacher.

    Returns:
        [N], squared differences summed over channels and pixels, as the IKL surrogate is summed.
    """
    return high_pass(images - start_images.detach(), bridge).square().sum(dim=[1, 2, 3])
