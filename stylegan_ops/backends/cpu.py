"""The raw operators for tensors on the CPU, by a library of kernels (csrc/cpu), without autograd.

`registration` lists their signatures. `bias_act`, `upfirdn2d` and `filtered_lrelu` take float64, float32, bfloat16 and
float16, one dtype for all tensors but filters, which are float32; their results are contiguous, or, but for the last
one's, channels_last where x is. All others
take float32 only, and are called only for tensors that fulfill their `REQUIREMENTS`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stylegan_ops.backends import packing


@functools.cache
def library() -> ctypes.CDLL:
    """Load the CPU library, and build it first if needed.

    Raises:
        stylegan_ops.build.BuildError: It cannot be built.
        OSError: It cannot be loaded.
    """
    from stylegan_ops import build

    path = build.cpu_library()
    loaded = ctypes.CDLL(str(path))
    version = loaded.stylegan_ops_abi_version()
    if version != packing.ABI_VERSION:
        raise OSError(f"{path} has version {version} of the kernels' arguments, not {packing.ABI_VERSION}: delete it")
    names = ("bias_act", "upfirdn2d", "filtered_lrelu", "conv3x3", "group_norm_silu", "attention")
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
    if contiguous:  # The faster call.
        y = x.new_empty(shape)
    else:
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    args = packing.upfirdn2d_pointers(y, x, f) + rest
    if library().stylegan_ops_upfirdn2d(args) != 0:
        raise ValueError(f"the CPU library has no upfirdn2d for {x.dtype}")
    return y


# A lookup takes less time than computing the same again for each layer in each step.
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
    """Return the shape of the result, and the packed arguments behind the pointers."""
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


# --- filtered_lrelu


def _run_filtered_lrelu(
    order: int, signal: Tensor | None, x: Tensor, fu: Tensor, fd: Tensor, b: Tensor | None, *options: Any
) -> Tensor:
    call = _filtered_lrelu_call(x.shape, fu.shape, fd.shape, *options)
    y = x.new_empty(call.x_shape if order == packing.FILTERED_LRELU_GRAD else call.y_shape)
    x, filters = x.contiguous(), {"fu": fu.contiguous(), "fd": fd.contiguous()}
    b = None if b is None else b.to(x.dtype).contiguous()
    signal = None if signal is None else signal.to(x.dtype).contiguous()
    args = packing.filtered_lrelu_args(order, y, x, b, signal, filters, call, torch.get_num_threads())
    if library().stylegan_ops_filtered_lrelu(args) != 0:
        raise ValueError(f"the CPU library has no filtered_lrelu for {x.dtype}")
    return y


@functools.lru_cache(maxsize=1024)
def _filtered_lrelu_call(
    x_shape: tuple[int, ...], fu_shape: tuple[int, ...], fd_shape: tuple[int, ...], up: int, down: int, *rest: Any
) -> packing.FilteredLrelu:
    *padding, gain, slope, clamp, flip = rest
    left, right, top, bottom = padding
    return packing.FilteredLrelu(
        x_shape, fu_shape, fd_shape, up, down, (left, right, top, bottom), gain, slope, clamp, flip
    )


def filtered_lrelu(
    x: Tensor,
    fu: Tensor,
    fd: Tensor,
    b: Tensor | None,
    up: int,
    down: int,
    pad_x0: int,
    pad_x1: int,
    pad_y0: int,
    pad_y1: int,
    gain: float,
    slope: float,
    clamp: float,
    flip: bool,
) -> Tensor:
    """Upsample x + b by `fu`, apply clamp(gain * lrelu), downsample by `fd`."""
    options = (up, down, pad_x0, pad_x1, pad_y0, pad_y1, gain, slope, clamp, flip)
    return _run_filtered_lrelu(packing.FILTERED_LRELU, None, x, fu, fd, b, *options)


def filtered_lrelu_grad(
    dy: Tensor,
    x: Tensor,
    fu: Tensor,
    fd: Tensor,
    b: Tensor | None,
    up: int,
    down: int,
    pad_x0: int,
    pad_x1: int,
    pad_y0: int,
    pad_y1: int,
    gain: float,
    slope: float,
    clamp: float,
    flip: bool,
) -> Tensor:
    """Map the gradient of the result of `filtered_lrelu` to that of x."""
    options = (up, down, pad_x0, pad_x1, pad_y0, pad_y1, gain, slope, clamp, flip)
    return _run_filtered_lrelu(packing.FILTERED_LRELU_GRAD, dy, x, fu, fd, b, *options)


def filtered_lrelu_tangent(
    dx: Tensor,
    x: Tensor,
    fu: Tensor,
    fd: Tensor,
    b: Tensor | None,
    up: int,
    down: int,
    pad_x0: int,
    pad_x1: int,
    pad_y0: int,
    pad_y1: int,
    gain: float,
    slope: float,
    clamp: float,
    flip: bool,
) -> Tensor:
    """Map a change of x to that of the result of `filtered_lrelu`, to first order."""
    options = (up, down, pad_x0, pad_x1, pad_y0, pad_y1, gain, slope, clamp, flip)
    return _run_filtered_lrelu(packing.FILTERED_LRELU_TANGENT, dx, x, fu, fd, b, *options)


# --- convolutions

# Below, PyTorch's own are as fast: transforming pixels and filters takes longer than the products that it saves.
MIN_CHANNELS = 16
MIN_TILES = 32  # Least number of tiles of 4 x 4 pixels, over all images.
TILES_PER_FILTER = 4000  # Least number of tiles: in_channels * out_channels / TILES_PER_FILTER.
MIN_BATCH = 16  # With fewer images, on one thread, PyTorch itself computes `conv1x1` as it is computed here.


def _are_float32(*tensors: Tensor | None) -> bool:
    for tensor in tensors:  # noqa: SIM110  # A generator takes longer than all other questions.
        if tensor is not None and tensor.dtype != torch.float32:
            return False
    return True


def _winograd_pays(sizes: bool, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    if x.ndim != 4 or weight.shape[2:] != (3, 3) or not x.is_contiguous() or not _are_float32(x, weight, bias):
        return False
    out_channels, channels, _, _ = weight.shape
    if channels != x.shape[1] or channels < MIN_CHANNELS or out_channels < MIN_CHANNELS:
        return False
    return not torch.is_autocast_enabled("cpu") and (not sizes or _enough_tiles(x, channels * out_channels))


def _enough_tiles(x: Tensor, filters: int) -> bool:
    n, _, height, width = x.shape
    tiles = n * ((height + 3) // 4) * ((width + 3) // 4)
    return tiles >= MIN_TILES and tiles * TILES_PER_FILTER >= filters


def _winograd_pays_backward(sizes: bool, images: Tensor, other: Tensor) -> bool:
    # The gradient of images or of filters, from images [N, A, H, W] and filters or images [*, B, *, *].
    a, b = images.shape[1], other.shape[1]
    return _are_float32(images, other) and min(a, b) >= MIN_CHANNELS and (not sizes or _enough_tiles(images, a * b))


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Correlate float32 images [N, C, H, W], padded by one pixel of zeros, with filters [out_channels, C, 3, 3]."""
    return _convolve(x, weight, bias, transposed=False)


def conv3x3_input_grad(dy: Tensor, weight: Tensor) -> Tensor:
    """Map the gradient [N, out_channels, H, W] of a result to that of the images, [N, C, H, W]."""
    return _convolve(dy, weight, None, transposed=True)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty((x.shape[0], weight.shape[1 if transposed else 0], *x.shape[2:]))
    library().stylegan_ops_conv3x3(packing.conv3x3_args(y, x, weight, bias, transposed, torch.get_num_threads()))
    return y


def conv3x3_weight_grad(x: Tensor, dy: Tensor) -> Tensor:
    """Map images [N, C, H, W] and the gradient of the result to that of the filters, [out_channels, C, 3, 3]."""
    x, dy = x.contiguous(), dy.contiguous()
    dw = x.new_empty((dy.shape[1], x.shape[1], 3, 3))
    args = packing.conv3x3_args(dy, x, dw, None, False, torch.get_num_threads(), filter_gradient=True)
    library().stylegan_ops_conv3x3(args)
    return dw


def _products_pay(sizes: bool, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    if sizes and (x.ndim != 4 or x.shape[0] < MIN_BATCH or x.shape[0] < torch.get_num_threads()):
        return False
    return x.is_contiguous() and _are_float32(x, weight, bias) and not torch.is_autocast_enabled("cpu")


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply each image [C, H * W] by the weight [out_channels, C, 1, 1]; PyTorch can differentiate this one."""
    return torch.ops.aten.thnn_conv2d(x, weight, [1, 1], bias)


# --- normalization

MIN_PIXELS = 64  # Least number of pixels of a channel; for fewer the kernel is no faster.


def _one_pass_pays(sizes: bool, x: Tensor, *others: Tensor | None) -> bool:
    if not x.is_contiguous() or not _are_float32(x, *others) or torch.is_autocast_enabled("cpu"):
        return False
    return not sizes or _enough_pixels(x)


def _enough_pixels(x: Tensor) -> bool:
    n, channels = x.shape[:2]
    return x.numel() >= max(1, n * channels * MIN_PIXELS)


def _one_pass_pays_backward(sizes: bool, dy: Tensor, x: Tensor, *others: Tensor | None) -> bool:
    return _are_float32(dy, x, *others) and (not sizes or _enough_pixels(x))


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    before: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Compute silu((group_norm(x + before) * weight + bias) * (1 + scale) + shift) of float32 tensors.

    Args:
        x: Input [N, C, ...].
        weight: Factor [C].
        bias: Summand [C].
        before: Summand [N, C] before the normalization, or None.
        scale: Factor [N, C] less one, or None.
        shift: Summand [N, C], or None.
        groups: Number of groups of neighboring channels.
        eps: Number added to variances.

    Returns:
        The result, and mean and reciprocal deviation of each group, [2, N, groups].
    """
    x = x.contiguous()
    inputs = _contiguous(weight, bias, before, scale, shift)
    y, statistics = torch.empty_like(x), x.new_empty((2, x.shape[0], groups))
    args = packing.group_norm_args(x, groups, eps, torch.get_num_threads(), inputs, None, y, statistics)
    library().stylegan_ops_group_norm_silu(args)
    return y, statistics


def group_norm_silu_grads(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    before: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    statistics: Tensor,
    groups: int,
    eps: float,
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of x, weight, bias, before, scale and shift, None for what is None, from that of y."""
    x, dy = x.contiguous(), dy.contiguous()
    inputs = _contiguous(weight, bias, before, scale, shift)
    dx, grads = torch.empty_like(x), [None if t is None else torch.empty_like(t) for t in inputs]
    args = packing.group_norm_args(x, groups, eps, torch.get_num_threads(), inputs, dy, dx, statistics, grads)
    library().stylegan_ops_group_norm_silu(args)
    return (dx, *grads)


def _both_pay(sizes: bool, x: Tensor, weight: Tensor, bias: Tensor, *norm_and_keep: Tensor | None) -> bool:
    return (
        _winograd_pays(sizes, x, weight, bias)
        and _are_float32(*norm_and_keep[:-1])
        and (not sizes or _enough_pixels(x))
    )


def _both_pay_backward(sizes: bool, dy: Tensor, x: Tensor, *others: Tensor | None) -> bool:
    return _winograd_pays_backward(sizes, x, dy) and (not sizes or _enough_pixels(x))


def _drop_in_place(x: Tensor, keep: Tensor | None, gain: float) -> Tensor:
    return x if keep is None else x.mul_(keep).mul_(gain)


def norm_conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    before: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    keep: Tensor | None,
    groups: int,
    eps: float,
    gain: float,
) -> tuple[Tensor, Tensor]:
    """Compute conv3x3(group_norm_silu(x, ...) * keep * gain, weight, bias), and the statistics of `group_norm_silu`."""
    h, statistics = group_norm_silu(x, norm_weight, norm_bias, before, scale, shift, groups, eps)
    return conv3x3(_drop_in_place(h, keep, gain), weight, bias), statistics


def norm_conv3x3_grads(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    before: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    keep: Tensor | None,
    statistics: Tensor,
    groups: int,
    eps: float,
    gain: float,
    filters: bool,
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of x, weight (if `filters`, else None), norm_weight, norm_bias, before, scale and shift.

    Computing the input of the convolution again takes a small part of the convolution's time, and saves most of the
    memory.
    """
    norm = (norm_weight, norm_bias, before, scale, shift)
    dw = None
    if filters:
        h, _ = group_norm_silu(x, *norm, groups, eps)
        dw = conv3x3_weight_grad(_drop_in_place(h, keep, gain), dy)
        del h
    dh = _drop_in_place(conv3x3_input_grad(dy, weight), keep, gain)
    dx, *grads = group_norm_silu_grads(dh, x, *norm, statistics, groups, eps)
    return (dx, dw, *grads)


# --- attention

MULTIPLE = 32  # The kernels take multiples of this number of pixels.
MAX_CHANNELS = 128  # Most channels of a head that were tried.


def _fits_attention(sizes: bool, qkv: Tensor) -> bool:
    channels = qkv.shape[2]
    if channels % 8 or channels > MAX_CHANNELS or not qkv.is_contiguous() or qkv.dtype != torch.float32:
        return False
    return not torch.is_autocast_enabled("cpu") and (not sizes or _has_panels(qkv))


def _has_panels(qkv: Tensor) -> bool:
    return qkv.shape[4] % MULTIPLE == 0 and qkv.numel() > 0


def _fits_attention_grad(sizes: bool, dy: Tensor, qkv: Tensor) -> bool:
    channels = qkv.shape[2]
    if channels % 8 or channels > MAX_CHANNELS or not qkv.is_contiguous() or not _are_float32(dy, qkv):
        return False
    return not sizes or _has_panels(qkv)


def attention(qkv: Tensor) -> Tensor:
    """Map queries, keys and values [N, heads, C, 3, L], contiguous float32, to sums of values [N, heads, C, L]."""
    out = qkv.new_empty((*qkv.shape[:3], qkv.shape[4]))
    _run_attention(qkv, None, out)
    return out


def attention_grad(dy: Tensor, qkv: Tensor) -> Tensor:
    """Map the gradient of the result to that of qkv."""
    dqkv = torch.empty_like(qkv)
    _run_attention(qkv, dy.contiguous(), dqkv)
    return dqkv


def _run_attention(qkv: Tensor, dy: Tensor | None, out: Tensor) -> None:
    args = packing.attention_args(qkv, dy, out, qkv.shape[2] ** -0.5, torch.get_num_threads())
    if library().stylegan_ops_attention(args) != 0:
        raise ValueError(f"the CPU library has no attention for {list(qkv.shape)}")


# --- requirements

REQUIREMENTS: dict[str, Callable[..., bool]] = {
    "conv3x3": _winograd_pays,
    "conv3x3_input_grad": _winograd_pays_backward,
    "conv3x3_weight_grad": _winograd_pays_backward,
    "conv1x1": _products_pay,
    "attention": _fits_attention,
    "attention_grad": _fits_attention_grad,
    "group_norm_silu": _one_pass_pays,
    "group_norm_silu_grads": _one_pass_pays_backward,
    "norm_conv3x3": _both_pay,
    "norm_conv3x3_grads": _both_pay_backward,
}
"""Whether a kernel takes the tensors of a call and is faster than PyTorch, from (sizes, *tensors).

With `sizes` False, the answer does not depend on the numbers of images and pixels, which may be symbols. Operators that
are not listed take all tensors.
"""
