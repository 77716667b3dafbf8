"""The kernels' arguments, as csrc/abi.h declares them, and the packing of tensors into them.

`bias_act_args` and `upfirdn2d_args` return the bytes of a struct: ctypes passes them as a pointer without a copy,
and packing is several times faster than filling a `ctypes.Structure` member by member. They check nothing that
the public functions have checked. Whoever calls the kernel keeps the tensors alive until it has run.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stylegan_ops.reference import ACTIVATIONS

ABI_VERSION = 3
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


def _packer(structure: type[ctypes.Structure]) -> struct.Struct:
    """Packer of the members of a structure, arrays element by element, in their order."""
    codes: dict[Any, str] = {
        ctypes.c_void_p: "P",
        ctypes.c_int64: "q",
        ctypes.c_double: "d",
        ctypes.c_int32: "i",
        ctypes.c_int64 * 4: "4q",
    }
    return struct.Struct("@" + "".join(codes[field[1]] for field in structure._fields_))


_BIAS_ACT = _packer(BiasActArgs)
_UPFIRDN2D = _packer(Upfirdn2dArgs)
_CONV3X3 = _packer(Conv3x3Args)
_GROUP_NORM = _packer(GroupNormArgs)
_POINTERS = struct.Struct("@3P")
_ATTENTION = _packer(AttentionArgs)


def is_channels_last(x: Tensor) -> bool:
    """True if x [N, C, H, W] lies in memory as [N, H, W, C], and not also as [N, C, H, W]."""
    return not x.is_contiguous() and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def dense(x: Tensor) -> Tensor:
    """The tensor itself where it is contiguous or channels_last, else a contiguous copy."""
    return x if x.is_contiguous() or is_channels_last(x) else x.contiguous()


def dense_like(other: Tensor, x: Tensor) -> Tensor:
    """`other`, of x's shape, with its elements in the order in which `dense` x has them, in x's dtype."""
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
        out: Output tensor; x, dy and ddx lie in memory like it.
        x: `dense` tensor.
        b: Contiguous bias [x.shape[dim]] of x's dtype, or None.
        dy: Gradient of the result, for GRAD and GRAD2.
        ddx: Gradient of the first derivative, for GRAD2.
        dim: Dimension of x that b runs along.
        act: Index into `ACTS`.
        alpha: Slope of lrelu below zero.
        gain: Factor after the activation.
        clamp: Limit of the absolute value; negative for none.
        num_threads: Number of CPU threads that may share the work.
        db: Output tensor for the sums of the result over all dimensions but `dim`, like b; for GRAD on the CPU.
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
    """Height or width of the result of upfirdn2d."""
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
        y: Output tensor for the result [N, C, H', W'], in memory like x.
        x: `dense` images [N, C, H, W].
        f: Contiguous float32 filter [height, width], or [taps] for both axes.
        up_x: Columns per column of x, all but the first zero.
        up_y: Rows per row of x, all but the first zero.
        down_x: Every down_x-th column is kept.
        down_y: Every down_y-th row is kept.
        pad_x0: Columns of zeros to the left; negative crops.
        pad_y0: Rows of zeros at the top; negative crops.
        flip: False convolves, True correlates.
        gain: Factor on the result.
        num_threads: Number of CPU threads that may share the work.
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
    """Pack what follows the pointers, which calls have in common."""
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
        y: [N, out_channels, H, W]: where the result goes; its gradient if `filter_gradient`.
        x: Images [N, in_channels, H, W].
        weight: [out_channels, in_channels, 3, 3], in channels first if `transposed`; where its gradient goes if
            `filter_gradient`.
        bias: [out_channels] or None.
        transposed: Whether `weight` stands for its transpose, with both axes of its 3 x 3 reversed.
        num_threads: Number of CPU threads that may share the work.
        filter_gradient: Whether to compute the gradient of the filter.
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
        x: [N, C, ...].
        groups: Number of groups of neighboring channels.
        eps: Number added to variances.
        num_threads: Number of CPU threads that may share the work.
        inputs: Weight, bias, before, scale, shift; the last three may be None.
        dy: Gradient of the result; None to compute the result.
        y: Output tensor for the result, or the gradient of x.
        statistics: [2, N, groups], mean and reciprocal deviation of each group.
        grads: Output tensors for the gradients of `inputs`.
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
        qkv: [N, heads, C, 3, L].
        dout: Gradient of the result, [N, heads, C, L]; None to compute the result.
        out: Output tensor for the result, or the gradient of qkv.
        scale: Factor on products of queries and keys.
        num_threads: Number of CPU threads that may share the work.
    """
    n, heads, channels, _, length = qkv.shape
    return _ATTENTION.pack(
        *(qkv.data_ptr(), 0 if dout is None else dout.data_ptr(), out.data_ptr()),
        *(n * heads, channels, length, scale, num_threads, 0),
    )
