"""Pictures of many images: a grid with a gutter and captions, in which tiny images are enlarged.

The layout travels in the PNG, as JSON in a text chunk named `grid`, so that a reader can cut single rows out of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features
from PIL.PngImagePlugin import PngInfo

from refine.files.atomic import atomic_write
from refine.files.images import WHITE, picture_of, tile

# The StyleGAN suite fills 7680x4320 pixels, with 7 to 32 images across and 4 to 32 down.
TARGET_WIDTH, TARGET_HEIGHT = 7680, 4320
COLUMNS, ROWS = (7, 32), (4, 32)
SMALLEST_TILE = 64  # pixels across; smaller images are enlarged to it
COMPRESS_LEVEL = 3  # of zlib: half the time of Pillow's default, 6, for a tenth more bytes
_KEY = "grid"


def grid_shape(resolution: int, num_classes: int = 0, most: int | None = None) -> tuple[int, int]:
    """Columns and rows of the StyleGAN suite's picture of fakes.

    Args:
        resolution: Pixels along either axis of an image.
        num_classes: Classes that take turns from column to column. If there is room for all of them, the columns are
            a multiple of their number.
        most: Most images in the grid, where drawing is slow; None: No bound. At least one row is kept.
    """
    columns, rows = (
        min(max(target // resolution, low), high)
        for target, (low, high) in ((TARGET_WIDTH, COLUMNS), (TARGET_HEIGHT, ROWS))
    )
    if most is not None:
        columns = min(columns, max(most, 1))
    if 0 < num_classes <= columns:
        columns -= columns % num_classes
    if most is not None:
        rows = min(rows, max(most // columns, 1))
    return columns, rows


@dataclass(frozen=True)
class Layout:
    """Place of each image in a picture, in pixels of the picture.

    Attributes:
        columns, rows: Images across and down.
        tile: Side of an image as shown.
        gutter: Distance between two images.
        top: Height of all captions above the first row.
        title: Height of the uppermost one, of the whole picture.
    """

    columns: int
    rows: int
    tile: int
    gutter: int
    top: int
    title: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole picture."""
        pitch = self.tile + self.gutter
        return self.columns * pitch - self.gutter, self.top + self.rows * pitch - self.gutter

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Left and upper edge of an image."""
        pitch = self.tile + self.gutter
        return column * pitch, self.top + row * pitch

    def part(self, rows: int, columns: int, first_row: int = 0) -> tuple[int, int, int, int]:
        """Box (left, upper, right, lower) of the first images of so many rows, without captions."""
        left, upper = self.corner(min(first_row, self.rows - 1), 0)
        right, lower = self.corner(min(first_row + rows, self.rows) - 1, min(columns, self.columns) - 1)
        return left, upper, right + self.tile, lower + self.tile


def draw_grid(
    pixels: np.ndarray, columns: int, title: str = "", column_names: Sequence[str] = ()
) -> tuple[Image.Image, Layout]:
    """A picture of images, row by row, and its layout.

    Args:
        pixels: Images, uint8 [N, C, H, H], C = 1 or 3, N >= 1. A short last row is left white.
        columns: Images in a row.
        title: Caption of the whole picture.
        column_names: Captions of the columns, from the left; there may be fewer than columns.
    """
    if not features.check("freetype2"):  # a Pillow built without fonts: the images matter more than their captions
        title, column_names = "", ()
    count, channels, resolution, _ = pixels.shape
    scale = max(SMALLEST_TILE // resolution, 1)
    side = resolution * scale
    rows = -(-count // columns)
    heading, names = min(max(side // 3, 16), 48), min(max(side // 4, 12), 32)  # sizes of the fonts
    heights = [size * 3 // 2 if shown else 0 for size, shown in ((heading, title), (names, column_names))]
    layout = Layout(columns, rows, side, gutter=min(max(side // 32, 1), 8), top=sum(heights), title=heights[0])
    mode = "L" if channels == 1 else "RGB"
    canvas = Image.new(mode, layout.size, "white")
    large = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
    canvas.paste(picture_of(tile(large, columns, fill=WHITE, gap=layout.gutter)), layout.corner(0, 0))
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((layout.gutter, heights[0] / 2), title, fill="black", font=_font(heading), anchor="lm")
    for column, name in enumerate(column_names[:columns]):
        x = layout.corner(0, column)[0] + side / 2
        draw.text((x, layout.top - heights[1] / 2), name, fill="black", font=_font(names), anchor="mm")
    return canvas, layout


def save_grid(
    path: str | os.PathLike[str],
    pixels: np.ndarray,
    columns: int,
    title: str = "",
    column_names: Sequence[str] = (),
) -> None:
    """Writes the picture of `draw_grid` as a PNG, complete or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    picture, layout = draw_grid(pixels, columns, title, column_names)
    info = PngInfo()
    info.add_text(_KEY, json.dumps(asdict(layout)))
    with atomic_write(path) as file:
        picture.save(file, "PNG", pnginfo=info, compress_level=COMPRESS_LEVEL)


def layout_of(picture: Image.Image) -> Layout | None:
    """The layout that an opened PNG brings along; None: It has none, or one that does not fit its size."""
    try:
        values = json.loads(picture.info.get(_KEY, ""))
        numbers = {field.name: values[field.name] for field in fields(Layout)}
    except (ValueError, TypeError, KeyError):
        return None
    if not all(type(number) is int and number >= 0 for number in numbers.values()):
        return None
    layout = Layout(**numbers)
    return layout if _is_of(layout, picture) else None


def _is_of(layout: Layout, picture: Image.Image) -> bool:
    has_images = min(layout.columns, layout.rows, layout.tile) > 0
    return has_images and layout.title <= layout.top and layout.size == picture.size


def side_by_side(pictures: Sequence[Image.Image], captions: Sequence[str] = (), gap: int = 16) -> Image.Image:
    """Pictures in a row on white, each below its caption.

    Args:
        pictures: Pictures, all gray (mode L) or all RGB.
        captions: Caption of each; empty: There are none.
        gap: Pixels between two pictures.
    """
    height = max(picture.height for picture in pictures)
    size = min(max(height // 20, 16), 48)
    captions = captions if features.check("freetype2") else ()
    top = size * 3 // 2 if captions else 0
    width = sum(picture.width + gap for picture in pictures) - gap
    canvas = Image.new(pictures[0].mode, (width, top + height), "white")
    draw, left = ImageDraw.Draw(canvas), 0
    for picture, caption in zip(pictures, captions or [""] * len(pictures), strict=True):
        canvas.paste(picture, (left, top))
        if caption:
            draw.text((left + picture.width / 2, top / 2), caption, fill="black", font=_font(size), anchor="mm")
        left += picture.width + gap
    return canvas


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
