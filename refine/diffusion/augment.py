"""Non-leaky augmentation with labels: EDM's nine-label pipeline (Karras et al., arXiv 2206.00364, appendix F.2).

A denoiser trained with it receives the parameters of each transformation as augmentation labels; labels of zero ask
for images without augmentation. The fake score starts as a copy of such a network and may be trained with the same
augmentation.

Eight parameters per image are drawn first, for the whole batch (`draw`), so that any part of the batch can then be
transformed by itself (`transform`, `labels`). Parameters of an image that is left unchanged are all 0. The geometry,
in pixels from the image center with y pointing down, is: mirror, scale, rotate, stretch along an axis, shift, in this
order. Images are resampled once, as in StyleGAN2-ADA (arXiv 2006.06676, appendix B): reflection padding, 2x
upsampling with a sym6 wavelet, bilinear lookup, and 2x downsampling with the same wavelet.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from stylegan_ops import upfirdn2d

PARAMETERS = ("mirror_x", "mirror_y", "scale", "rotation", "stretch_angle", "stretch", "shift_x", "shift_y")
NUM_LABELS = 9

SCALE_STD = 0.2  # standard deviation of log2 of the scale
STRETCH_STD = 0.2  # standard deviation of log2 of the stretch
STRETCH_ANGLE_PROBABILITY = 0.5  # probability of an axis other than the horizontal
SHIFT_STD = 1 / 8  # standard deviation in image widths

# Low-pass filter of the sym6 wavelet: orthonormal to its own shifts by two, so that upsampling followed by downsampling
# is the identity.
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
_REACH = len(SYM6) // 4  # image pixels on each side that the filter covers at 2x resolution
_PHASE = -0.25  # pixels: the wavelet's weight is centered on tap 5, half a fine pixel before the middle of its 12 taps


def draw(num_images: int, p: float, generator: torch.Generator) -> Tensor:
    """Draws the augmentation parameters of a batch.

    Args:
        num_images: Number of images N.
        p: Probability of each transformation, in [0, 1]; as in EDM, the horizontal mirror has probability 1/2
            whenever p > 0.
        generator: Random number generator on the CPU.

    Returns:
        [N, 8] float32 on the CPU, in the order of `PARAMETERS`: 1 or 0 for mirrors, radians for angles, standard normal
        values for scale, stretch and shift.
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
    """Augmentation labels of parameters [N, 8].

    Returns:
        [N, 9]: two mirrors, scale, rotation (cos - 1, sin), stretch (along x, along y), shift (x, y).
    """
    mirror_x, mirror_y, scale, rotation, stretch_angle, stretch, shift_x, shift_y = parameters.unbind(1)
    return torch.stack(
        [
            *(mirror_x, mirror_y, scale, rotation.cos() - 1, rotation.sin()),
            *(stretch * stretch_angle.cos(), stretch * stretch_angle.sin(), shift_x, shift_y),
        ],
        dim=1,
    )


def matrices(parameters: Tensor, size: int) -> Tensor:
    """Inverse transformations, from pixels of the result to pixels of the image, without the mirrors.

    Args:
        parameters: Augmentation parameters, [N, 8].
        size: Height and width of the image in pixels.

    Returns:
        Homogeneous matrices in pixels from the center, [N, 3, 3] float64.
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
    """Applies the transformations; images whose parameters are all 0 stay bit-identical.

    Args:
        images: Images of a floating-point dtype, [N, C, R, R].
        parameters: Augmentation parameters, [N, 8], on any device.

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
    """Draws parameters and applies them.

    Returns:
        Images [N, C, R, R] and labels [N, 9], both on the device of `images`.
    """
    parameters = draw(len(images), p, generator)
    return transform(images, parameters), labels(parameters).to(images.device, images.dtype)


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Resamples images at positions given by affine maps from pixels of the result to pixels of the image.

    Args:
        images: Images, [N, C, R, R].
        matrix: Homogeneous matrices in pixels from the center, [N, 3, 3], on the CPU.
    """
    size, dtype, device = images.shape[-1], images.dtype, images.device
    wavelet = upfirdn2d.setup_filter(SYM6, device=device)
    # The border covers what the corners of the result read, with the reach of the filter on either side.
    extent = (size - 1) / 2 + _REACH
    corners = torch.tensor([[-1.0, 1, -1, 1], [-1, -1, 1, 1]], dtype=torch.float64) * extent
    corners = torch.cat([corners, torch.ones(1, 4, dtype=torch.float64)])
    needed = float((matrix.double() @ corners)[:, :2].abs().max()) + _REACH - (size - 1) / 2
    border = max(0, min(math.ceil(needed), size - 1))
    padded = functional.pad(images, [border] * 4, mode="reflect") if border else images
    fine = upfirdn2d.upsample2d(padded, wavelet, up=2)
    # Fine grid of the result in grid_sample's coordinates, where -1 and 1 are the edges of the padded image.
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
