"""The raw operators on the CPU library (csrc/cpu), for tensors on the CPU; no autograd.

Signatures and meaning as in `library`. Tensors are float64, float32, bfloat16 or float16 and of one dtype but for
the filter, which is float32. Results are contiguous, or channels_last where x is.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from stylegan_ops.backends import packing


@functools.cache
def library() -> ctypes.CDLL:
    """The CPU library, built if need be.

    Raises:
        stylegan_ops.build.BuildError: if it cannot be built.
        OSError: if it cannot be loaded.
    """
    from stylegan_ops import build

    path = build.cpu_library()
    loaded = ctypes.CDLL(str(path))
    version = loaded.stylegan_ops_abi_version()
    if version != packing.ABI_VERSION:
        raise OSError(f"{path} has version {version} of the kernels' arguments, not {packing.ABI_VERSION}: delete it")
    names = ("bias_act", "upfirdn2d", "conv3x3", "group_norm_silu", "attention")
    for function in (getattr(loaded, f"stylegan_ops_{name}") for name in names):
        function.argtypes = [ctypes.c_char_p]  # Bytes are passed as a pointer to them.
        function.restype = ctypes.c_int
    return loaded


def _run_bias_act(
    order: int,
    x: Tensor,
    b: Tensor | None,
    dy: Tensor | None,
    ddx: Tensor | None,
    dim: int,
    act: int,
    alpha: float,
    gain: float,
    clamp: float,
    db: Tensor | None = None,
) -> Tensor:
    x = packing.dense(x)
    if b is not None:
        b = b.to(x.dtype).contiguous()
    if dy is not None:
        dy = packing.dense_like(dy, x)
    if ddx is not None:
        ddx = packing.dense_like(ddx, x)
    out = torch.empty_like(x)
    args = packing.bias_act_args(order, out, x, b, dy, ddx, dim, act, alpha, gain, clamp, torch.get_num_threads(), db)
    if library().stylegan_ops_bias_act(args) != 0:
        raise ValueError(f"the CPU library has no bias_act of order {order} and activation {act}")
    return out


def bias_act(x: Tensor, b: Tensor | None, dim: int, act: int, alpha: float, gain: float, clamp: float) -> Tensor:
    """Compute clamp(gain * act(x + b))."""
    return _run_bias_act(packing.VALUE, x, b, None, None, dim, act, alpha, gain, clamp)


def bias_act_grad(
    dy: Tensor, x: Tensor, b: Tensor | None, dim: int, act: int, alpha: float, gain: float, clamp: float
) -> Tensor:
    """Compute dy * gain * act'(x + b), zero where the clamp holds."""
    return _run_bias_act(packing.GRAD, x, b, dy, None, dim, act, alpha, gain, clamp)


def bias_act_grads(
    dy: Tensor, x: Tensor, b: Tensor, dim: int, act: int, alpha: float, gain: float, clamp: float
) -> tuple[Tensor, Tensor]:
    """Compute `bias_act_grad` and its sum over all dimensions but `dim`, in one pass over the memory."""
    db = torch.empty_like(b, dtype=x.dtype, memory_format=torch.contiguous_format)
    return _run_bias_act(packing.GRAD, x, b, dy, None, dim, act, alpha, gain, clamp, db), db


def bias_act_grad2(
    ddx: Tensor,
    dy: Tensor,
    x: Tensor,
    b: Tensor | None,
    dim: int,
    act: int,
    alpha: float,
    gain: float,
    clamp: float,
) -> Tensor:
    """Compute ddx * dy * gain * act''(x + b), zero where the clamp holds."""
    return _run_bias_act(packing.GRAD2, x, b, dy, ddx, dim, act, alpha, gain, clamp)


def upfirdn2d(
    x: Tensor,
    f: Tensor,
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
) -> Tensor:
    """Upsample, pad, filter with f [height, width] or [taps] along both axes, and downsample x [N, C, H, W]."""
    x = packing.dense(x)
    f = f.contiguous()
    contiguous = x.is_contiguous()
    shape, rest = _upfirdn2d_layout(
        x.shape,
        f.shape,
        not contiguous,
        x.dtype,
        *(up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1),
        flip,
        gain,
        torch.get_num_threads(),
    )
    if contiguous:  # The quicker call.
        y = x.new_empty(shape)
    else:
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    args = packing.upfirdn2d_pointers(y, x, f) + rest
    if library().stylegan_ops_upfirdn2d(args) != 0:
        raise ValueError(f"the CPU library has no upfirdn2d for {x.dtype}")
    return y


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False) -> Tensor:
    """Correlate float32 images [N, C, H, W], padded by one pixel, with [out_channels, C, 3, 3], or with its transpose.

    Transposed, it maps the gradient of a result to that of the images.
    """
    x, weight = x.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = torch.empty((x.shape[0], weight.shape[1 if transposed else 0], *x.shape[2:]), dtype=x.dtype)
    library().stylegan_ops_conv3x3(packing.conv3x3_args(y, x, weight, bias, transposed, torch.get_num_threads()))
    return y


def conv3x3_filter_gradient(x: Tensor, dy: Tensor) -> Tensor:
    """The gradient [out_channels, C, 3, 3] of the filters, of images and the gradient of the result."""
    x, dy = x.contiguous(), dy.contiguous()
    dw = torch.empty((dy.shape[1], x.shape[1], 3, 3), dtype=x.dtype)
    args = packing.conv3x3_args(dy, x, dw, None, False, torch.get_num_threads(), filter_gradient=True)
    library().stylegan_ops_conv3x3(args)
    return dw


def group_norm_silu(x: Tensor, groups: int, eps: float, inputs: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Compute silu((group_norm(x + before) * weight + bias) * (1 + scale) + shift), all contiguous float32.

    Args:
        x: [N, C, ...].
        groups: of neighbouring channels.
        eps: added to variances.
        inputs: weight, bias, before, scale, shift; the last three may be None.

    Returns:
        The result; mean and reciprocal deviation of each group, [2, N, groups].
    """
    y, statistics = torch.empty_like(x), torch.empty((2, x.shape[0], groups), dtype=x.dtype)
    args = packing.group_norm_args(x, groups, eps, torch.get_num_threads(), inputs, None, y, statistics)
    library().stylegan_ops_group_norm_silu(args)
    return y, statistics


def group_norm_silu_grads(
    dy: Tensor, x: Tensor, groups: int, eps: float, inputs: Sequence[Tensor | None], statistics: Tensor
) -> list[Tensor | None]:
    """The gradients of x and of `inputs`, None where these are."""
    dx, grads = torch.empty_like(x), [None if t is None else torch.empty_like(t) for t in inputs]
    args = packing.group_norm_args(x, groups, eps, torch.get_num_threads(), inputs, dy, dx, statistics, grads)
    library().stylegan_ops_group_norm_silu(args)
    return [dx, *grads]


# Looked up in less time than it takes to compute, which a network would do again for each layer of each step.
@functools.lru_cache(maxsize=1024)
def _upfirdn2d_layout(
    x_shape: tuple[int, ...],
    f_shape: tuple[int, ...],
    channels_last: bool,
    dtype: torch.dtype,
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
    num_threads: int,
) -> tuple[tuple[int, int, int, int], bytes]:
    """The result's shape, and the packed arguments behind the pointers."""
    n, c, height, width = x_shape
    y_height = packing.upfirdn2d_size(height, f_shape[0], up_y, down_y, pad_y0, pad_y1)
    y_width = packing.upfirdn2d_size(width, f_shape[-1], up_x, down_x, pad_x0, pad_x1)
    y_shape = (n, c, y_height, y_width)
    rest = packing.upfirdn2d_rest(
        x_shape,
        y_shape,
        f_shape,
        channels_last,
        dtype,
        *(up_x, up_y, down_x, down_y, pad_x0, pad_y0),
        flip,
        gain,
        num_threads,
    )
    return y_shape, rest


def attention(qkv: Tensor, scale: float) -> Tensor:
    """Queries, keys and values [N, heads, C, 3, L], contiguous float32, to sums of values [N, heads, C, L]."""
    out = torch.empty((*qkv.shape[:3], qkv.shape[4]), dtype=qkv.dtype)
    if library().stylegan_ops_attention(packing.attention_args(qkv, None, out, scale, torch.get_num_threads())) != 0:
        raise ValueError(f"the CPU library has no attention for {list(qkv.shape)}")
    return out


def attention_grad(dout: Tensor, qkv: Tensor, scale: float) -> Tensor:
    """The gradient of qkv, from that of the result."""
    dqkv = torch.empty_like(qkv)
    if library().stylegan_ops_attention(packing.attention_args(qkv, dout, dqkv, scale, torch.get_num_threads())) != 0:
        raise ValueError(f"the CPU library has no attention for {list(qkv.shape)}")
    return dqkv
