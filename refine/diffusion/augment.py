"""Augmentation that the network is told about: the nine-label pipe of EDM (arXiv 2206.00364, appendix F.2).

A denoiser trained so knows what undoes each transformation, and is asked for unchanged images by labels of zero. The
fake score starts as such a network, and may be fitted under the same augmentation.

Every image has eight parameters, drawn first and for a whole batch (`draw`), so that any part of the batch can then be
transformed alone (`transform`, `labels`). All parameters of an image that stays as it is are 0. Geometry, in pixels
from the image's centre with y downwards: mirror, scale, rotate, stretch along an axis, shift, in this order, resampled
once as in StyleGAN2-ADA (arXiv 2006.06676, appendix B): reflected at the borders, oversampled twice through a sym6
wavelet, looked up bilinearly, and brought back through the same wavelet.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from stylegan_ops import upfirdn2d

PARAMETERS = ("mirror_x", "mirror_y", "scale", "rotation", "stretch_angle", "stretch", "shift_x", "shift_y")
NUM_LABELS = 9

SCALE_STD = 0.2  # of log2 of the scale
STRETCH_STD = 0.2  # of log2 of the stretch
STRETCH_ANGLE_PROBABILITY = 0.5  # of an axis other than the horizontal
SHIFT_STD = 1 / 8  # in widths of the image

# The low-pass filter of the sym6 wavelet: orthonormal to itself shifted by two, so that bringing back what was
# oversampled gives the image itself.
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
_REACH = len(SYM6) // 4  # pixels of the image on each side that the filter sees, when oversampled twice
_PHASE = -0.25  # pixels: the wavelet's weight lies about tap 5, half a fine pixel before the middle of its 12 taps


def draw(num_images: int, p: float, generator: torch.Generator) -> Tensor:
    """Draws the parameters of a batch.

    Args:
        num_images: N.
        p: probability of each transformation but the horizontal mirror, which as in EDM half of all images get
            whenever p is not 0.
        generator: of the CPU.

    Returns:
        [N, 8] float32 on the CPU in the order of `PARAMETERS`; standard normal for scale, stretch and shift, radians
        for angles, 1 for mirrored.
    """

    def happens(probability: float) -> Tensor:
        return torch.rand(num_images, generator=generator) < probability

    def coin() -> Tensor:
        return torch.randint(2, [num_images], generator=generator).float()

    def normal() -> Tensor:
        return torch.randn(num_images, generator=generator)

    def angle() -> Tensor:
        return (torch.rand(num_images, generator=generator) * 2 - 1) * math.pi

    mirror_x = coin() * (p > 0)
    mirror_y = coin() * happens(p)
    scale = normal() * happens(p)
    rotation = angle() * happens(p)
    stretched = happens(p)
    stretch_angle = angle() * happens(STRETCH_ANGLE_PROBABILITY) * stretched
    stretch = normal() * stretched
    shifted = happens(p)
    shift_x, shift_y = normal() * shifted, normal() * shifted
    return torch.stack([mirror_x, mirror_y, scale, rotation, stretch_angle, stretch, shift_x, shift_y], dim=1)


def labels(parameters: Tensor) -> Tensor:
    """What the network is told, [N, 9]: mirrors 2, scale 1, rotation (cos - 1, sin), stretch (along x, y), shift 2."""
    mirror_x, mirror_y, scale, rotation, stretch_angle, stretch, shift_x, shift_y = parameters.unbind(1)
    return torch.stack(
        [
            *(mirror_x, mirror_y, scale, rotation.cos() - 1, rotation.sin()),
            *(stretch * stretch_angle.cos(), stretch * stretch_angle.sin(), shift_x, shift_y),
        ],
        dim=1,
    )


def matrices(parameters: Tensor, size: int) -> Tensor:
    """Where each pixel of the result comes from: [N, 3, 3] float64, homogeneous, without the mirrors.

    Args:
        parameters: [N, 8].
        size: pixels of the image along either axis.
    """
    p = dict(zip(PARAMETERS, parameters.double().unbind(1), strict=True))
    scale, stretch = 2 ** (SCALE_STD * p["scale"]), 2 ** (STRETCH_STD * p["stretch"])
    shift_x, shift_y = SHIFT_STD * size * p["shift_x"], SHIFT_STD * size * p["shift_y"]
    along, back = _rotation(p["stretch_angle"]), _rotation(-p["stretch_angle"])
    # x_result = shift stretch rotation scale x_image; the inverse of each, in the opposite order.
    unscale, unrotate = _diagonal(1 / scale, 1 / scale), _rotation(p["rotation"])
    unstretch = back @ _diagonal(1 / stretch, stretch) @ along
    return unscale @ unrotate @ unstretch @ _translation(-shift_x, -shift_y)


def transform(images: Tensor, parameters: Tensor) -> Tensor:
    """Applies the transformations; images whose parameters say so come back bit for bit.

    Args:
        images: [N, C, R, R], floating point.
        parameters: [N, 8], on any device.

    Returns:
        [N, C, R, R], without gradient where a transformation is not differentiable.
    """
    parameters = parameters.cpu()
    mirrored = images
    for column, axis in ((0, 3), (1, 2)):
        chosen = (parameters[:, column] > 0.5).to(images.device).reshape(-1, 1, 1, 1)
        mirrored = torch.where(chosen, mirrored.flip(axis), mirrored)
    moved = parameters[:, 2:].any(dim=1).nonzero()[:, 0]
    if len(moved) == 0:
        return mirrored
    where = moved.to(images.device)
    warped = warp(mirrored[where], matrices(parameters[moved], images.shape[-1]))
    return mirrored.index_copy(0, where, warped)


def augment(images: Tensor, p: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws, transforms and labels in one go: (images [N, C, R, R], labels [N, 9] on their device)."""
    parameters = draw(len(images), p, generator)
    return transform(images, parameters), labels(parameters).to(images.device, images.dtype)


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Resamples images along a map from each pixel of the result to a place in the image.

    Args:
        images: [N, C, R, R].
        matrix: [N, 3, 3], in pixels from the centre, on the CPU.
    """
    size, dtype, device = images.shape[-1], images.dtype, images.device
    wavelet = upfirdn2d.setup_filter(SYM6, device=device)
    # What the corners of the result see, with what its filter needs around it, decides how much is reflected.
    extent = (size - 1) / 2 + _REACH
    corners = torch.tensor([[-1.0, 1, -1, 1], [-1, -1, 1, 1]], dtype=torch.float64) * extent
    corners = torch.cat([corners, torch.ones(1, 4, dtype=torch.float64)])
    needed = float((matrix.double() @ corners)[:, :2].abs().max()) + _REACH - (size - 1) / 2
    border = max(0, min(math.ceil(needed), size - 1))
    padded = functional.pad(images, [border] * 4, mode="reflect") if border else images
    fine = upfirdn2d.upsample2d(padded, wavelet, up=2)
    # The result's own fine grid, in widths of the padded image as grid_sample counts: -1 and 1 are its edges.
    fine_size = 2 * (size + 2 * _REACH)
    offset = torch.full([1], _PHASE, dtype=torch.float64)
    theta = (_translation(offset, offset) @ matrix.double() @ _translation(-offset, -offset))[:, :2]
    theta[:, :, :2] *= (size + 2 * _REACH) / (size + 2 * border)
    theta[:, :, 2] *= 2 / (size + 2 * border)
    grid = functional.affine_grid(
        theta.to(device, dtype), [len(images), images.shape[1], fine_size, fine_size], align_corners=False
    )
    looked_up = functional.grid_sample(fine, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return upfirdn2d.downsample2d(looked_up, wavelet, down=2, padding=-2 * _REACH, flip_filter=True)


def _rotation(angle: Tensor) -> Tensor:
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).reshape(-1, 3, 3)


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def _translation(x: Tensor, y: Tensor) -> Tensor:
    matrix = torch.eye(3, dtype=x.dtype).repeat(len(x), 1, 1)
    matrix[:, 0, 2], matrix[:, 1, 2] = x, y
    return matrix
