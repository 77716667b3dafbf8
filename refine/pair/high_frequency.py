"""Detail that the teacher cannot see: the part of an image that downsampling to the teacher's resolution removes.

A teacher at 64 pixels gives no gradient for this detail. It drifts all the same while lower layers are trained,
because their features feed the layers above. The drift is logged, and `--anchor` penalizes it.
"""

from __future__ import annotations

from torch import Tensor

from refine.pair.bridge import Bridge
from refine.pair.resize import resize


def high_pass(images: Tensor, bridge: Bridge) -> Tensor:
    """Images minus their copies downsampled to the teacher's resolution and upsampled again; differentiable.

    Args:
        images: Images as generated, [N, C, H, H].
        bridge: Bridge to the teacher.

    Returns:
        Detail, [N, C, H, H]; zeros if the teacher sees every pixel.
    """
    return images - resize(bridge.images(images), images.shape[-1], bridge.resample)


def anchor_loss(images: Tensor, start_images: Tensor, bridge: Bridge) -> Tensor:
    """Squared change of detail since the starting generator, at the same latents.

    Args:
        images: Images of the current generator, [N, C, H, H], differentiable.
        start_images: Images of the starting generator, [N, C, H, H].
        bridge: Bridge to the teacher.

    Returns:
        Squared differences summed over channels and pixels, as in the IKL surrogate, [N].
    """
    return high_pass(images - start_images.detach(), bridge).square().sum(dim=[1, 2, 3])
