"""Arguments of the operators: factors are (x, y), padding is (left, right, top, bottom) and may be negative."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Factor: TypeAlias = int | Sequence[int]
PaddingLike: TypeAlias = int | Sequence[int]


class Size(NamedTuple):
    """A width and a height, in pixels, taps or as resampling factors."""

    x: int
    y: int


class Padding(NamedTuple):
    """Pixels of zeros to add at each side of an image; a negative number removes pixels instead."""

    left: int
    right: int
    top: int
    bottom: int


ONE = Size(1, 1)
NO_PADDING = Padding(0, 0, 0, 0)
_SQUARES = tuple(Size(n, n) for n in range(9))


def _integers(value: int | Sequence[int], name: str, counts: tuple[int, ...]) -> tuple[int, ...]:
    values = value if isinstance(value, Sequence) else (value,)
    try:
        numbers = tuple(operator.index(v) for v in values)
    except TypeError:
        numbers = ()
    if isinstance(value, str) or len(numbers) not in counts:
        allowed = " or ".join(str(count) for count in counts)
        raise ValueError(f"{name} must be {allowed} whole numbers, not {value!r}")
    return numbers


def parse_factor(factor: Factor, name: str) -> Size:
    """Read a resampling factor, one number for both axes or `[x, y]`.

    Raises:
        ValueError: It is neither one nor two whole numbers of at least 1; the message begins with `name`.
    """
    # Each layer of a network calls this, hence the shortcuts.
    if type(factor) is int and factor >= 1:
        return _SQUARES[factor] if factor < len(_SQUARES) else Size(factor, factor)
    if type(factor) is Size and factor[0] >= 1 and factor[1] >= 1:
        return factor
    numbers = _integers(factor, name, (1, 2))
    if min(numbers) < 1:
        raise ValueError(f"{name} must be at least 1, not {factor!r}")
    return Size(numbers[0], numbers[-1])


def parse_padding(padding: PaddingLike) -> Padding:
    """Read padding, one number for all sides, `[x, y]` or `[left, right, top, bottom]`.

    Raises:
        ValueError: It is neither one, two nor four whole numbers.
    """
    if type(padding) is int:
        return Padding(padding, padding, padding, padding) if padding else NO_PADDING
    if type(padding) is Padding:
        return padding
    numbers = _integers(padding, "padding", (1, 2, 4))
    if len(numbers) == 4:
        return Padding(*numbers)
    return Padding(numbers[0], numbers[0], numbers[-1], numbers[-1])


def filter_size(f: Tensor | None) -> Size:
    """Count the taps of a filter along each axis: 1-D filters are applied along both, None is the single tap 1.

    Raises:
        TypeError: `f` is neither a tensor nor None.
        ValueError: It has neither one nor two dimensions, or no taps.
    """
    if f is None:
        return ONE
    if not isinstance(f, Tensor):
        raise TypeError(f"f must be a tensor from setup_filter() or None, not {type(f).__name__}")
    shape = f.shape
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"f must have shape [taps] or [height, width], not {list(shape)}")
    return Size(shape[-1], shape[0])


def centered_padding(padding: Padding, taps: Size, up: Size = ONE, down: Size = ONE) -> Padding:
    """Add to `padding` what keeps an image centered under a filter, its size multiplied by up / down."""
    # Unpacked, since each layer of a network calls this.
    (left, right, top, bottom), (taps_x, taps_y) = padding, taps
    (up_x, up_y), (down_x, down_y) = up, down
    return Padding(
        left + (taps_x + up_x - down_x) // 2,
        right + (taps_x - up_x - down_x + 1) // 2,
        top + (taps_y + up_y - down_y) // 2,
        bottom + (taps_y - up_y - down_y + 1) // 2,
    )


def check_images(x: Tensor) -> None:
    """Raise TypeError or ValueError unless `x` is a floating-point tensor [N, C, H, W] with C at least 1."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor, not {kind}")
    shape = x.shape
    if len(shape) != 4 or shape[1] == 0:
        raise ValueError(f"x must have shape [N, C, H, W] with C at least 1, not {list(shape)}")


def check_extent(x: Tensor, taps: Size, up: Size, padding: Padding) -> None:
    """Raise ValueError if the upsampled and padded image is smaller than the window to slide over it."""
    _, _, height, width = x.shape
    left, right, top, bottom = padding
    width = width * up[0] + left + right
    height = height * up[1] + top + bottom
    if width < taps[0] or height < taps[1]:
        raise ValueError(
            f"the image is {width} x {height} pixels after upsampling and padding, "
            f"smaller than the {taps.x} x {taps.y} taps that are to slide over it"
        )


def pad_or_crop(x: Tensor, padding: Padding) -> Tensor:
    """Move the borders of images [N, C, H, W] outward into zeros, or inward where `padding` is negative."""
    # Padding comes first, since one side may crop more than the image has before the other pads.
    if max(padding) > 0:
        x = functional.pad(x, [max(side, 0) for side in padding])
    if min(padding) < 0:
        left, right, top, bottom = (max(-side, 0) for side in padding)
        x = x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]
    return x


def conv2d_padded(x: Tensor, w: Tensor, padding: Padding, stride: Size = ONE, groups: int = 1) -> Tensor:
    """Correlate like `torch.conv2d`, with padding that may be negative or differ between sides."""
    # conv2d pads both sides alike without copying the image; only the rest needs a copy.
    both_x = max(0, min(padding.left, padding.right))
    both_y = max(0, min(padding.top, padding.bottom))
    rest = Padding(padding.left - both_x, padding.right - both_x, padding.top - both_y, padding.bottom - both_y)
    x = pad_or_crop(x, rest)
    return torch.conv2d(x, w, stride=(stride.y, stride.x), padding=(both_y, both_x), groups=groups)


def adjoint(
    x_shape: Sequence[int],
    y_shape: Sequence[int],
    f_shape: Sequence[int],
    up_x: int,
    up_y: int,
    down_x: int,
    down_y: int,
    pad_x0: int,
    pad_x1: int,
    pad_y0: int,
    pad_y1: int,
    flip: bool,
    gain: float,
) -> tuple[int, int, int, int, int, int, int, int, bool, float]:
    """Return the options with which upfirdn2d maps gradients of y to gradients of x.

    Along one axis y[o] = sum over i of x[i] * k[i * up + pad0 - o * down], where k are the taps of a correlation.
    Read as a sum over o, this is the same with up and down exchanged, k reversed and pad0' = taps - 1 - pad0; pad1'
    makes the result as large as x.
    """
    taps_x, taps_y = f_shape[-1], f_shape[0]
    return (
        *(down_x, down_y, up_x, up_y),
        taps_x - 1 - pad_x0,
        x_shape[3] * up_x - y_shape[3] * down_x + pad_x0 - up_x + 1,
        taps_y - 1 - pad_y0,
        x_shape[2] * up_y - y_shape[2] * down_y + pad_y0 - up_y + 1,
        not flip,
        gain,
    )
