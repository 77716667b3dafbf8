"""Pictures as parts of the page: small enough to travel in it, and cut by the layout that they bring along."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, features

from refine.files.image_grid import layout_of

MAX_SIDE = 2200  # pixels of a whole picture in the page
MAX_PNG_BYTES = 300_000  # beyond which a picture is compressed with loss
SAMPLED = 16  # one in so many rows is compressed to tell the size of the whole
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
    return _remembered(_whole, path)


def first_row(path: Path) -> Embedded | None:
    """The first images of a picture's first row; the whole picture, small, where it has no layout; None: Unreadable."""
    return _remembered(_first_row, path)


def _remembered(made: Callable[[Path], Embedded | None], path: Path) -> Embedded | None:
    """Result for a file that has not changed since, because a run writes its report again at each snapshot."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _made(made, path, (status.st_ctime_ns, status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=64)
def _made(made: Callable[[Path], Embedded | None], path: Path, version: tuple[int, ...]) -> Embedded | None:
    return made(path)


def _whole(path: Path) -> Embedded | None:
    try:
        with Image.open(path) as picture:
            layout = layout_of(picture)
            whole = picture.crop((0, layout.title, *picture.size)) if layout else picture
            return _encoded(whole, MAX_SIDE / max(whole.size))
    except UNREADABLE:
        return None


def _first_row(path: Path) -> Embedded | None:
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
    picture = picture.convert("L" if picture.mode == "L" else "RGB")
    kind, content = "PNG", _png(picture)
    if content is None:
        kind, options = ("WEBP", {"quality": 85}) if features.check("webp") else ("JPEG", {"quality": 90})
        content = _bytes(picture, kind, **options)
    return Embedded(_uri(content, kind.lower()), *picture.size)


def _png(picture: Image.Image) -> bytes | None:
    """The picture as PNG; None if that is large, which a part of it tells before all of it is compressed."""
    middle, height = picture.height // 2, -(-picture.height // SAMPLED)
    part = picture.crop((0, middle, picture.width, min(middle + height, picture.height)))
    if len(_bytes(part, "PNG")) * picture.height > 2 * MAX_PNG_BYTES * part.height:
        return None
    content = _bytes(picture, "PNG")
    return content if len(content) <= MAX_PNG_BYTES else None


def _bytes(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
