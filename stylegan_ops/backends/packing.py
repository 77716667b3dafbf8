"""The kernels' arguments, as csrc/abi.h declares them, and the packing of tensors into them.

The functions return the bytes of a struct: ctypes passes them as a pointer without a copy, and packing is several times
faster than filling a `ctypes.Structure` member by member. They rely on the checks of the public functions. The caller
of a kernel keeps the tensors alive until it has run.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stylegan_ops.reference import ACTIVATIONS

ABI_VERSION = 4
DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
ACTS = tuple(ACTIVATIONS)
VALUE, GRAD, GRAD2 = range(3)


class BiasActArgs(ctypes.Structure):
    """The struct of the same name in csrc/abi.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("dy", ctypes.c_void_p),
        ("ddx", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("db", ctypes.c_void_p),
        ("numel", ctypes.c_int64),
        ("bias_size", ctypes.c_int64),
        ("bias_step", ctypes.c_int64),
        ("alpha", ctypes.c_double),
        ("gain", ctypes.c_double),
        ("clamp", ctypes.c_double),
        ("order", ctypes.c_int32),
        ("act", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    )


class Upfirdn2dArgs(ctypes.Structure):
    """The struct of the same name in csrc/abi.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("filter", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("x_height", ctypes.c_int64),
        ("x_width", ctypes.c_int64),
        ("y_height", ctypes.c_int64),
        ("y_width", ctypes.c_int64),
        ("x_stride", ctypes.c_int64 * 4),
        ("y_stride", ctypes.c_int64 * 4),
        ("gain", ctypes.c_double),
        ("filter_height", ctypes.c_int32),
        ("filter_width", ctypes.c_int32),
        ("separable", ctypes.c_int32),
        ("up_x", ctypes.c_int32),
        ("up_y", ctypes.c_int32),
        ("down_x", ctypes.c_int32),
        ("down_y", ctypes.c_int32),
        ("pad_x0", ctypes.c_int32),
        ("pad_y0", ctypes.c_int32),
        ("flip", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    )


class Resampling(ctypes.Structure):
    """The struct of the same name in csrc/abi.h."""

    _fields_ = (
        ("filter", ctypes.c_void_p),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("gain", ctypes.c_double),
        ("filter_height", ctypes.c_int32),
        ("filter_width", ctypes.c_int32),
        ("separable", ctypes.c_int32),
        ("flip", ctypes.c_int32),
        ("factor", ctypes.c_int32),
        ("pad_x", ctypes.c_int32),
        ("pad_y", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )


class FilteredLreluArgs(ctypes.Structure):
    """The struct of the same name in csrc/abi.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("signal", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("x_up", Resampling),
        ("signal_up", Resampling),
        ("down", Resampling),
        ("batch", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("gain", ctypes.c_double),
        ("slope", ctypes.c_double),
        ("clamp", ctypes.c_double),
        ("dtype", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
        ("tile_height", ctypes.c_int32),
        ("tile_width", ctypes.c_int32),
    )


class Conv3x3Args(ctypes.Structure):
    """The struct of the same name in csrc/abi.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("w", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("in_channels", ctypes.c_int64),
        ("out_channels", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("transposed", ctypes.c_int32),
        ("filter_gradient", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )


class GroupNormArgs(ctypes.Structure):
    """The struct of the same name in csrc/abi.h."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("before", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("dy", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("mean", ctypes.c_void_p),
        ("inverse", ctypes.c_void_p),
        ("dbefore", ctypes.c_void_p),
        ("dweight", ctypes.c_void_p),
        ("dbias", ctypes.c_void_p),
        ("dscale", ctypes.c_void_p),
        ("dshift", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("eps", ctypes.c_double),
        ("num_threads", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )


class AttentionArgs(ctypes.Structure):
    """The struct of the same name in csrc/abi.h."""

    _fields_ = (
        ("qkv", ctypes.c_void_p),
        ("dout", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("heads", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("num_threads", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )


def _codes(structure: type[ctypes.Structure]) -> str:
    """Return the format of the members of a structure, in their order, arrays element by element."""
    codes: dict[Any, str] = {
        ctypes.c_void_p: "P",
        ctypes.c_int64: "q",
        ctypes.c_double: "d",
        ctypes.c_int32: "i",
        ctypes.c_int64 * 4: "4q",
    }
    kinds: list[Any] = [field[1] for field in structure._fields_]
    return "".join(codes.get(kind) or _codes(kind) for kind in kinds)


def _packer(structure: type[ctypes.Structure]) -> struct.Struct:
    """Make a packer of the members of a structure."""
    return struct.Struct("@" + _codes(structure))


_BIAS_ACT = _packer(BiasActArgs)
_UPFIRDN2D = _packer(Upfirdn2dArgs)
_CONV3X3 = _packer(Conv3x3Args)
_GROUP_NORM = _packer(GroupNormArgs)
_POINTERS = struct.Struct("@3P")
_FILTERED_LRELU = _packer(FilteredLreluArgs)
_ATTENTION = _packer(AttentionArgs)


def is_channels_last(x: Tensor) -> bool:
    """Return whether x [N, C, H, W] lies in memory as [N, H, W, C] and not as [N, C, H, W] too."""
    return not x.is_contiguous() and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def dense(x: Tensor) -> Tensor:
    """Return the tensor itself if it is contiguous or channels_last, else a contiguous copy."""
    return x if x.is_contiguous() or is_channels_last(x) else x.contiguous()


def dense_like(other: Tensor, x: Tensor) -> Tensor:
    """Return `other`, of x's shape, in x's dtype and with its elements in the order of `dense` x."""
    format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return other.to(x.dtype).contiguous(memory_format=format)


def bias_act_args(
    order: int,
    out: Tensor,
    x: Tensor,
    b: Tensor | None,
    dy: Tensor | None,
    ddx: Tensor | None,
    dim: int,
    act: int,
    alpha: float,
    gain: float,
    clamp: float,
    num_threads: int = 1,
    db: Tensor | None = None,
) -> bytes:
    """Pack BiasActArgs.

    Args:
        order: VALUE, GRAD or GRAD2.
        out: Memory for the result; x, dy and ddx lie in memory like it.
        x: `dense` tensor.
        b: Contiguous bias [x.shape[dim]] of x's dtype, or None.
        dy: Gradient of the result, for GRAD and GRAD2.
        ddx: Gradient of the first derivative, for GRAD2.
        dim: Dimension of x that b runs along.
        act: Index into `ACTS`.
        alpha: Slope of lrelu below zero.
        gain: Factor after the activation.
        clamp: Limit of the absolute value; negative for none.
        num_threads: Number of threads of the CPU that may share the work.
        db: Memory like b for the sums of the result over all dimensions but `dim`; for GRAD on the CPU.
    """
    size = 1 if b is None else max(1, x.shape[dim])
    return _BIAS_ACT.pack(
        x.data_ptr(),
        0 if b is None else b.data_ptr(),
        0 if dy is None else dy.data_ptr(),
        0 if ddx is None else ddx.data_ptr(),
        out.data_ptr(),
        0 if db is None else db.data_ptr(),
        x.numel(),
        size,
        # A dimension of size 1 may have any stride, even 0.
        1 if size == 1 else x.stride(dim),
        alpha,
        gain,
        clamp,
        order,
        act,
        DTYPES[x.dtype],
        num_threads,
    )


def _strides(shape: Sequence[int], channels_last: bool) -> tuple[int, int, int, int]:
    # Not tensor.stride(), which is arbitrary for dimensions of size 1.
    _, c, h, w = shape
    return (h * w * c, 1, w * c, c) if channels_last else (c * h * w, h * w, w, 1)


def upfirdn2d_size(size: int, taps: int, up: int, down: int, pad0: int, pad1: int) -> int:
    """Compute the height or width of the result of upfirdn2d."""
    return (size * up + pad0 + pad1 - taps) // down + 1


def upfirdn2d_args(
    y: Tensor,
    x: Tensor,
    f: Tensor,
    up_x: int,
    up_y: int,
    down_x: int,
    down_y: int,
    pad_x0: int,
    pad_y0: int,
    flip: bool,
    gain: float,
    num_threads: int = 1,
) -> bytes:
    """Pack Upfirdn2dArgs.

    Args:
        y: Memory for the result [N, C, H', W'], arranged like x.
        x: `dense` images [N, C, H, W].
        f: Contiguous float32 filter [height, width], or [taps] for both axes.
        up_x: Columns per column of x, all but the first zero.
        up_y: Rows per row of x, all but the first zero.
        down_x: Step between the columns to keep.
        down_y: Step between the rows to keep.
        pad_x0: Columns of zeros to the left; negative crops.
        pad_y0: Rows of zeros at the top; negative crops.
        flip: False convolves, True correlates.
        gain: Factor on the result.
        num_threads: Number of threads of the CPU that may share the work.
    """
    rest = upfirdn2d_rest(
        x.shape,
        y.shape,
        f.shape,
        is_channels_last(x),
        x.dtype,
        *(up_x, up_y, down_x, down_y, pad_x0, pad_y0),
        flip,
        gain,
        num_threads,
    )
    return upfirdn2d_pointers(y, x, f) + rest


def upfirdn2d_pointers(y: Tensor, x: Tensor, f: Tensor) -> bytes:
    """Pack the pointers that Upfirdn2dArgs begins with."""
    return _POINTERS.pack(x.data_ptr(), f.data_ptr(), y.data_ptr())


def upfirdn2d_rest(
    x_shape: Sequence[int],
    y_shape: Sequence[int],
    f_shape: Sequence[int],
    channels_last: bool,
    dtype: torch.dtype,
    up_x: int,
    up_y: int,
    down_x: int,
    down_y: int,
    pad_x0: int,
    pad_y0: int,
    flip: bool,
    gain: float,
    num_threads: int,
) -> bytes:
    """Pack the members behind the pointers, which are the same for many calls."""
    packed = _UPFIRDN2D.pack(
        *(0, 0, 0),
        *x_shape,
        *y_shape[2:],
        *_strides(x_shape, channels_last),
        *_strides(y_shape, channels_last),
        gain,
        f_shape[0],
        f_shape[-1],
        len(f_shape) == 1,
        *(up_x, up_y, down_x, down_y, pad_x0, pad_y0),
        flip,
        DTYPES[dtype],
        num_threads,
    )
    return packed[_POINTERS.size :]


def conv3x3_args(
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    transposed: bool,
    num_threads: int = 1,
    filter_gradient: bool = False,
) -> bytes:
    """Pack Conv3x3Args, of contiguous float32 tensors.

    Args:
        y: Memory for the result [N, out_channels, H, W], or its gradient if `filter_gradient`.
        x: Images [N, in_channels, H, W].
        weight: Filters [out_channels, in_channels, 3, 3], input channels first if `transposed`, or memory for their
            gradient if `filter_gradient`.
        bias: Summand [out_channels], or None.
        transposed: Whether to use the transpose of `weight`, both axes of its 3 x 3 reversed.
        num_threads: Number of threads of the CPU that may share the work.
        filter_gradient: Whether to compute the gradient of the filters.
    """
    source, target = (y, weight) if filter_gradient else (weight, y)
    return _CONV3X3.pack(
        x.data_ptr(),
        source.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        target.data_ptr(),
        x.shape[0],
        x.shape[1],
        y.shape[1],
        x.shape[2],
        x.shape[3],
        transposed,
        filter_gradient,
        num_threads,
        0,
    )


def group_norm_args(
    x: Tensor,
    groups: int,
    eps: float,
    num_threads: int,
    inputs: Sequence[Tensor | None],
    dy: Tensor | None,
    y: Tensor,
    statistics: Tensor,
    grads: Sequence[Tensor | None] = (None,) * 5,
) -> bytes:
    """Pack GroupNormArgs, of contiguous float32 tensors.

    Args:
        x: Input [N, C, ...].
        groups: Number of groups of neighboring channels.
        eps: Number added to variances.
        num_threads: Number of threads of the CPU that may share the work.
        inputs: Weight, bias, before, scale and shift; the last three may be None.
        dy: Gradient of the result; None computes the result.
        y: Memory for the result, or for the gradient of x.
        statistics: Mean and reciprocal deviation of each group, [2, N, groups].
        grads: Memory for the gradients of `inputs`.
    """
    weight, bias, before, scale, shift = (0 if tensor is None else tensor.data_ptr() for tensor in inputs)
    dweight, dbias, dbefore, dscale, dshift = (0 if tensor is None else tensor.data_ptr() for tensor in grads)
    batch, channels = x.shape[:2]
    mean = statistics.data_ptr()
    return _GROUP_NORM.pack(
        *(x.data_ptr(), before, weight, bias, scale, shift),
        *(0 if dy is None else dy.data_ptr(), y.data_ptr(), mean, mean + 4 * batch * groups),
        *(dbefore, dweight, dbias, dscale, dshift),
        *(batch, channels, groups, x.numel() // max(1, batch * channels), eps, num_threads, 0),
    )


def attention_args(qkv: Tensor, dout: Tensor | None, out: Tensor, scale: float, num_threads: int) -> bytes:
    """Pack AttentionArgs, of contiguous float32 tensors.

    Args:
        qkv: Queries, keys and values [N, heads, C, 3, L].
        dout: Gradient [N, heads, C, L] of the result; None computes the result.
        out: Memory for the result, or for the gradient of qkv.
        scale: Factor on products of queries and keys.
        num_threads: Number of threads of the CPU that may share the work.
    """
    n, heads, channels, _, length = qkv.shape
    return _ATTENTION.pack(
        *(qkv.data_ptr(), 0 if dout is None else dout.data_ptr(), out.data_ptr()),
        *(n * heads, channels, length, scale, num_threads, 0),
    )


FILTERED_LRELU, FILTERED_LRELU_GRAD, FILTERED_LRELU_TANGENT = range(3)


@dataclass(frozen=True)
class FilteredLrelu:
    """Shapes of a call of filtered_lrelu, and its options.

    Attributes:
        x_shape: Shape [N, C, H, W] of the input.
        fu_shape: Shape of the upsampling filter.
        fd_shape: Shape of the downsampling filter.
        up: Upsampling factor.
        down: Downsampling factor.
        padding: Pixels of the grid on the left, right, top and bottom.
        gain: Factor after the activation.
        slope: Slope of the activation below zero.
        clamp: Limit of the magnitude; negative for none.
        flip: False convolves, True correlates.
    """

    x_shape: tuple[int, ...]
    fu_shape: tuple[int, ...]
    fd_shape: tuple[int, ...]
    up: int
    down: int
    padding: tuple[int, int, int, int]
    gain: float
    slope: float
    clamp: float
    flip: bool

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        """Shape [N, C, H', W'] of the result."""
        n, c, height, width = self.x_shape
        left, right, top, bottom = self.padding
        grid_height = upfirdn2d_size(height, self.fu_shape[0], self.up, 1, top, bottom)
        grid_width = upfirdn2d_size(width, self.fu_shape[-1], self.up, 1, left, right)
        return (
            *(n, c),
            upfirdn2d_size(grid_height, self.fd_shape[0], 1, self.down, 0, 0),
            upfirdn2d_size(grid_width, self.fd_shape[-1], 1, self.down, 0, 0),
        )

    def resamplings(self, order: int) -> tuple[Half, Half, Half]:
        """Return the halves that FilteredLreluArgs names x_up, signal_up and down.

        Args:
            order: FILTERED_LRELU maps x to y, FILTERED_LRELU_GRAD the gradient of y to that of x, and
                FILTERED_LRELU_TANGENT a change of x to that of y.
        """
        x_size, y_size = self.x_shape[2:], self.y_shape[2:]
        left, _, top, _ = self.padding
        up_gain = float(self.up**2)  # The zeros between the pixels darken the image.
        x_up = Half("fu", x_size, up_gain, self.fu_shape, self.flip, self.up, left, top)
        down = Half("fd", y_size, 1.0, self.fd_shape, self.flip, self.down, 0, 0)
        if order != FILTERED_LRELU_GRAD:
            return x_up, x_up, down
        # Backward, y is upsampled and x downsampled, by the reversed filters. The gradient of x begins where the grid
        # may not have begun yet: all positions on it move by the same number.
        move_x, move_y = self.fu_shape[-1] - 1 - left, self.fu_shape[0] - 1 - top
        return (
            replace(x_up, pad_x=left + move_x, pad_y=top + move_y),
            Half(
                *("fd", y_size, 1.0, self.fd_shape, not self.flip, self.down),
                *(self.fd_shape[-1] - 1 + move_x, self.fd_shape[0] - 1 + move_y),
            ),
            Half("fu", x_size, up_gain, self.fu_shape, not self.flip, self.up, 0, 0),
        )


@dataclass(frozen=True)
class Half:
    """Upsampling of an image to the grid, or downsampling of the grid to an image; see `Resampling` in csrc/abi.h.

    Attributes:
        name: Name of the filter, `fu` or `fd`.
        size: Height and width of the image.
        gain: Factor on the result.
        shape: Shape of the filter.
        flip: False convolves, True correlates.
        factor: Steps of the grid between pixels.
        pad_x: Padding of the grid on the left.
        pad_y: Padding of the grid at the top.
    """

    name: str
    size: tuple[int, ...]
    gain: float
    shape: tuple[int, ...]
    flip: bool
    factor: int
    pad_x: int
    pad_y: int


def filtered_lrelu_args(
    order: int,
    y: Tensor,
    x: Tensor,
    b: Tensor | None,
    signal: Tensor | None,
    filters: dict[str, Tensor],
    call: FilteredLrelu,
    num_threads: int = 1,
    tile: tuple[int, int] = (0, 0),
) -> bytes:
    """Pack FilteredLreluArgs, of contiguous tensors.

    Args:
        order: FILTERED_LRELU, FILTERED_LRELU_GRAD or FILTERED_LRELU_TANGENT.
        y: Memory for the result.
        x: Input [N, C, H, W].
        b: Bias [C] of x's dtype, or None.
        signal: Gradient of the result, or change of x; None for FILTERED_LRELU.
        filters: Float32 filters `fu` and `fd`.
        call: Shapes and options.
        num_threads: Number of threads of the CPU that may share the work.
        tile: Rows and columns of y that a block of CUDA's kernel computes.
    """
    halves: list[Any] = []
    for half in call.resamplings(order):
        halves += (filters[half.name].data_ptr(), *half.size, half.gain, half.shape[0], half.shape[-1])
        halves += (len(half.shape) == 1, half.flip, half.factor, half.pad_x, half.pad_y, 0)
    return _FILTERED_LRELU.pack(
        *(x.data_ptr(), 0 if b is None else b.data_ptr(), 0 if signal is None else signal.data_ptr(), y.data_ptr()),
        *halves,
        *x.shape[:2],
        *(call.gain, call.slope, call.clamp),
        *(DTYPES[x.dtype], num_threads, *tile),
    )
