"""Pictures as parts of the page: small enough to travel in it, and cut by the layout that they bring along."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, features

from refine.files.image_grid import layout_of

MAX_SIDE = 2200  # pixels of a whole picture in the page
MAX_PNG_BYTES = 300_000  # beyond which a picture is compressed with loss
STRIP_ROWS = 10  # snapshots in the strip
STRIP_IMAGES = 12  # images across in it
STRIP_TILE = 96  # pixels of an image in it
# What Pillow raises for damaged files and for those that would not fit into memory.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Embedded:
    """A picture in the page.

    Attributes:
        uri: Data URI.
        width, height: Its size in pixels.
    """

    uri: str
    width: int
    height: int


def embedded(path: Path) -> Embedded | None:
    """A whole picture without its title, reduced if it is large; None: It cannot be read."""
    try:
        with Image.open(path) as picture:
            layout = layout_of(picture)
            whole = picture.crop((0, layout.title, *picture.size)) if layout else picture
            return _encoded(whole, MAX_SIDE / max(whole.size))
    except UNREADABLE:
        return None


def first_row(path: Path) -> Embedded | None:
    """The first images of a picture's first row; the whole picture, small, where it has no layout; None: Unreadable."""
    try:
        with Image.open(path) as picture:
            layout = layout_of(picture)
            if layout is None:
                return _encoded(picture, STRIP_IMAGES * STRIP_TILE / 2 / picture.width)
            row = picture.crop(layout.part(rows=1, columns=STRIP_IMAGES))
            return _encoded(row, STRIP_TILE / layout.tile)
    except UNREADABLE:
        return None


def evenly(count: int, most: int) -> list[int]:
    """Indices of at most so many of `count` things, evenly spaced, the first and the last one among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _encoded(picture: Image.Image, factor: float) -> Embedded:
    """As PNG where that is small, as drawings of few gray levels and tiny images are, else with loss."""
    if factor < 1:
        size = [max(round(side * factor), 1) for side in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    lossy, options = ("WEBP", {"quality": 85}) if features.check("webp") else ("JPEG", {"quality": 90})
    for kind, settings in (("PNG", {}), (lossy, options)):
        file = io.BytesIO()
        picture.convert("L" if picture.mode == "L" else "RGB").save(file, kind, **settings)
        if file.tell() <= MAX_PNG_BYTES:
            break
    return Embedded(_uri(file.getvalue(), kind.lower()), *picture.size)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
