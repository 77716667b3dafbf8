"""Images as 8-bit pixels, grids of them, and PNG files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from refine.errors import UserError
from refine.files.atomic import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

WHITE = 255


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] of any shape as the StyleGAN family stores them: x * 127.5 + 128, clamped, truncated."""
    images = images.float() if images.element_size() < 4 else images
    return (images * 127.5 + 128).clamp(0, 255).byte()


def require_finite(images: Tensor, source: str, remedy: str) -> None:
    """Refuses images that hold NaN or infinities, which `to_uint8` would turn into black or white pixels.

    Args:
        images: Floating point, of any shape.
        source: Origin of the images, such as "The generator".
        remedy: Remedy, in the imperative.

    Raises:
        UserError: Some value is not finite.
    """
    if not images.isfinite().all():
        raise UserError(f"{source} makes images that are not finite: {remedy}.")


def tile(images: Tensor | np.ndarray, columns: int, *, fill: int = 0, gap: int = 0) -> np.ndarray:
    """A grid, row by row.

    Args:
        images: Uint8 [N, C, H, W].
        columns: Images in a row.
        fill: Value of the gaps, and of the places that a short last row leaves empty.
        gap: Pixels between two images.

    Returns:
        Uint8 [rows * (H + gap) - gap, columns * (W + gap) - gap, C].
    """
    pixels = images if isinstance(images, np.ndarray) else images.cpu().numpy()
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    canvas = np.full((rows * columns, channels, height + gap, width + gap), fill, np.uint8)
    canvas[:count, :, :height, :width] = pixels
    grid = canvas.reshape(rows, columns, channels, height + gap, width + gap).transpose(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * (height + gap), columns * (width + gap), channels)
    return grid[: grid.shape[0] - gap, : grid.shape[1] - gap]


def image_grid(images: Tensor, columns: int) -> Image.Image:
    """Images [N, C, H, W], C = 1 or 3, in [-1, 1] as one picture, row by row; a short last row ends black."""
    return picture_of(tile(to_uint8(images), columns))


def to_picture(image: Tensor) -> Image.Image:
    """An image [1, C, H, W], C = 1 or 3, in [-1, 1] as a picture."""
    return image_grid(image, 1)


def join(pictures: Sequence[np.ndarray], gap: int, axis: int) -> np.ndarray:
    """Pictures uint8 [H, W, C] in a column (axis 0) or in a row (axis 1), with white gaps of so many pixels."""
    shape = list(pictures[0].shape)
    shape[axis] = gap
    line = np.full(shape, WHITE, np.uint8)
    parts = [part for picture in pictures for part in (line, picture)]
    return np.concatenate(parts[1:], axis=axis)


def enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    """A picture [H, W, C] with each pixel repeated along both axes."""
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def picture_of(pixels: np.ndarray) -> Image.Image:
    """Uint8 [H, W, C], C = 1 or 3, as a Pillow image."""
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


def pixels_of(picture: Image.Image) -> np.ndarray:
    """A gray or RGB Pillow image as uint8 [H, W, C]; the inverse of `picture_of`."""
    array = np.asarray(picture)
    return array[:, :, None] if array.ndim == 2 else array


def write_png(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Writes uint8 [H, W, C] as a PNG, complete or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    with atomic_write(path) as file:
        picture_of(pixels).save(file, "PNG")
