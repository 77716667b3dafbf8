"""The raw operators in plain PyTorch: on every device, under every transform, differentiable by PyTorch itself.

They have the signatures of the kernels (`registration` lists them), and compute whatever no kernel is there for.
Derivatives are written out, since inside a registered operator there is no autograd to ask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from stylegan_ops import reference
from stylegan_ops.arguments import Padding, Size, adjoint, conv2d_padded, pad_or_crop
from stylegan_ops.backends.packing import ACTS
from stylegan_ops.reference import filter_kernel

_P = ParamSpec("_P")
_R = TypeVar("_R")

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al., arXiv 1706.02515, equation 14
SOFTPLUS_THRESHOLD = 20.0  # Above it PyTorch's softplus is the identity.


@dataclass(frozen=True)
class Derivatives:
    """Derivatives of an activation function, both maps of (x, alpha); `second` is None if it is zero."""

    first: Callable[[Tensor, float], Tensor]
    second: Callable[[Tensor, float], Tensor] | None = None


def _sigmoid_derivative(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s)


def _elu_first(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, 1.0, x.clamp(max=0).exp())


def _elu_second(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x < 0, x.clamp(max=0).exp(), 0.0)


def _tanh_second(x: Tensor, alpha: float) -> Tensor:
    y = torch.tanh(x)
    return -2 * y * (1 - y * y)


def _swish_first(x: Tensor, alpha: float) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _swish_second(x: Tensor, alpha: float) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


# At zero as PyTorch decides: the slope is that below, the curvature that above.
DERIVATIVES: dict[str, Derivatives] = {
    "linear": Derivatives(lambda x, alpha: torch.ones_like(x)),
    "relu": Derivatives(lambda x, alpha: (x > 0).to(x.dtype)),
    "lrelu": Derivatives(lambda x, alpha: torch.where(x > 0, torch.ones_like(x), alpha)),
    "tanh": Derivatives(lambda x, alpha: 1 - torch.tanh(x).square(), _tanh_second),
    "sigmoid": Derivatives(
        lambda x, alpha: _sigmoid_derivative(x),
        lambda x, alpha: _sigmoid_derivative(x) * (1 - 2 * torch.sigmoid(x)),
    ),
    "elu": Derivatives(_elu_first, _elu_second),
    "selu": Derivatives(
        lambda x, alpha: SELU_SCALE * torch.where(x > 0, 1.0, SELU_ALPHA * x.clamp(max=0).exp()),
        lambda x, alpha: SELU_SCALE * SELU_ALPHA * _elu_second(x, alpha),
    ),
    "softplus": Derivatives(
        lambda x, alpha: torch.where(x > SOFTPLUS_THRESHOLD, 1.0, torch.sigmoid(x)),
        lambda x, alpha: torch.where(x > SOFTPLUS_THRESHOLD, 0.0, _sigmoid_derivative(x)),
    ),
    "swish": Derivatives(_swish_first, _swish_second),
}


def without_autocast(operator: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate an operator that computes in the dtype of its first argument, which autocast would change."""

    @functools.wraps(operator)
    def exact(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        device = args[0].device.type  # type: ignore[attr-defined]
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return operator(*args, **kwargs)
        return operator(*args, **kwargs)

    return exact


@without_autocast
def bias_act(x: Tensor, b: Tensor | None, dim: int, act: int, alpha: float, gain: float, clamp: float) -> Tensor:
    """Compute clamp(gain * act(x + b))."""
    return reference.bias_act(x, b, dim, ACTS[act], alpha, gain, None if clamp < 0 else clamp)


@without_autocast
def bias_act_grad(
    dy: Tensor, x: Tensor, b: Tensor | None, dim: int, act: int, alpha: float, gain: float, clamp: float
) -> Tensor:
    """Compute dy * gain * act'(x + b), zero where the clamp holds."""
    biased = reference.bias_act(x, b, dim, gain=1)
    dx = dy * DERIVATIVES[ACTS[act]].first(biased, alpha) * gain
    return _zero_where_clamped(dx, biased, act, alpha, gain, clamp)


@without_autocast
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
    second = DERIVATIVES[ACTS[act]].second
    if second is None:
        return torch.zeros_like(x)
    biased = reference.bias_act(x, b, dim, gain=1)
    return _zero_where_clamped(ddx * dy * second(biased, alpha) * gain, biased, act, alpha, gain, clamp)


def _zero_where_clamped(dx: Tensor, biased: Tensor, act: int, alpha: float, gain: float, clamp: float) -> Tensor:
    if clamp < 0:
        return dx
    y = reference.bias_act(biased, None, 0, ACTS[act], alpha, gain)
    return torch.where(y.abs() <= clamp, dx, 0)


@without_autocast
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
    """Upsample, pad, filter and downsample by PyTorch's depthwise convolutions; differentiable in f as well."""
    channels, taps_x, taps_y = x.shape[1], f.shape[-1], f.shape[0]
    if up_x == 1 and up_y == 1:
        sides = Padding(pad_x0, pad_x1, pad_y0, pad_y1)
        return conv2d_padded(x, filter_kernel(f, x, flip, gain), sides, stride=Size(down_x, down_y), groups=channels)

    # A transposed convolution is the full convolution of the zero-stuffed image, computed without the zeros.
    # The wanted part omits taps - 1 - padding pixels at its start and taps - up - padding at its end.
    left, right = taps_x - 1 - pad_x0, taps_x - up_x - pad_x1
    top, bottom = taps_y - 1 - pad_y0, taps_y - up_y - pad_y1
    both_x, both_y = max(0, min(left, right)), max(0, min(top, bottom))
    y = torch.conv_transpose2d(
        x,
        filter_kernel(f, x, not flip, gain),
        stride=(up_y, up_x),
        padding=(both_y, both_x),
        groups=channels,
    )
    y = pad_or_crop(y, Padding(both_x - left, both_x - right, both_y - top, both_y - bottom))
    return y if down_x == 1 and down_y == 1 else y[:, :, ::down_y, ::down_x]


# --- filtered_lrelu

LINEAR, LRELU = ACTS.index("linear"), ACTS.index("lrelu")


def _grid(x: Tensor, fu: Tensor, b: Tensor | None, up: int, padding: tuple[int, int, int, int], flip: bool) -> Tensor:
    """Upsample x + b to what the activation is applied to."""
    biased = x if b is None else bias_act(x, b, 1, LINEAR, 0.0, 1.0, -1.0)
    return upfirdn2d(biased, fu, up, up, 1, 1, *padding, flip, float(up**2))


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
    u = _grid(x, fu, b, up, (pad_x0, pad_x1, pad_y0, pad_y1), flip)
    y = bias_act(u, None, 1, LRELU, slope, gain, clamp)
    return upfirdn2d(y, fd, 1, 1, down, down, 0, 0, 0, 0, flip, 1.0)


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
    padding = (pad_x0, pad_x1, pad_y0, pad_y1)
    u = _grid(x, fu, b, up, padding, flip)
    backward = adjoint(u.shape, dy.shape, fd.shape, 1, 1, down, down, 0, 0, 0, 0, flip, 1.0)
    du = bias_act_grad(upfirdn2d(dy, fd, *backward), u, None, 1, LRELU, slope, gain, clamp)
    backward = adjoint(x.shape, u.shape, fu.shape, up, up, 1, 1, *padding, flip, float(up**2))
    return upfirdn2d(du, fu, *backward)


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
    padding = (pad_x0, pad_x1, pad_y0, pad_y1)
    u, du = _grid(x, fu, b, up, padding, flip), _grid(dx, fu, None, up, padding, flip)
    dy = bias_act_grad(du, u, None, 1, LRELU, slope, gain, clamp)
    return upfirdn2d(dy, fd, 1, 1, down, down, 0, 0, 0, 0, flip, 1.0)


# --- convolutions


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Correlate images [N, C, H, W], padded by one pixel of zeros, with filters [out_channels, C, 3, 3]."""
    return torch.conv2d(x, weight, bias, padding=1)


@without_autocast
def conv3x3_input_grad(dy: Tensor, weight: Tensor) -> Tensor:
    """Compute the derivative of sum(dy * conv3x3(x, weight, None)) with respect to x."""
    return torch.conv_transpose2d(dy, weight, padding=1)


@without_autocast
def conv3x3_weight_grad(x: Tensor, dy: Tensor) -> Tensor:
    """Compute the derivative of sum(dy * conv3x3(x, weight, None)) with respect to the weight."""
    return conv2d_weight(x, (dy.shape[1], x.shape[1], 3, 3), dy, padding=1)


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Mix the channels of each pixel of images [N, C, H, W] by a weight [out_channels, C, 1, 1]."""
    return torch.conv2d(x, weight, bias)


# --- attention


def attention(qkv: Tensor) -> Tensor:
    """Map queries, keys and values [N, heads, C, 3, L] to weighted sums of values [N, heads, C, L]."""
    query, key, value = qkv.permute(3, 0, 1, 4, 2).contiguous().unbind(0)  # each [N, heads, L, C]
    return functional.scaled_dot_product_attention(query, key, value).transpose(2, 3)


@without_autocast
def attention_grad(dy: Tensor, qkv: Tensor) -> Tensor:
    """Compute the derivative of sum(dy * attention(qkv)) with respect to qkv."""
    scale = qkv.shape[2] ** -0.5
    query, key, value = qkv.unbind(3)  # each [N, heads, C, L]
    weights = (query.transpose(2, 3) @ key * scale).softmax(dim=3)  # [N, heads, L of queries, L of keys]
    dweights = dy.transpose(2, 3) @ value
    products = weights * (dweights - (weights * dweights).sum(dim=3, keepdim=True)) * scale
    return torch.stack([key @ products.transpose(2, 3), query @ products, dy @ weights], dim=3)


# --- normalization


def silu_of_group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    before: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
) -> Tensor:
    """Compute silu(group_norm(x + before; weight, bias) * (1 + scale) + shift)."""
    shape = (*x.shape[:2], *[1] * (x.ndim - 2))
    if before is not None:
        x = x + before.reshape(shape)
    y = torch.group_norm(x, groups, weight, bias, eps)
    if scale is not None:
        y = y * (1 + scale.reshape(shape))
    if shift is not None:
        y = y + shift.reshape(shape)
    # In its own memory where no gradient needs the values before.
    return functional.silu(y, inplace=not torch.is_grad_enabled())


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
    """Compute `silu_of_group_norm`, and mean and reciprocal deviation [2, N, groups] of the groups of x + before."""
    y = silu_of_group_norm(x, weight, bias, before, scale, shift, groups, eps)
    _, mean, inverse = _standardize(x, before, groups, eps)
    return y, torch.stack([mean, inverse])


def _per_channel(t: Tensor, x: Tensor) -> Tensor:
    return t.reshape(*([1] * (2 - t.ndim)), *t.shape, *[1] * (x.ndim - 2))


def _standardize(x: Tensor, before: Tensor | None, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x + before - mean) / deviation [N, groups, ...], the mean and the reciprocal deviation [N, groups]."""
    if before is not None:
        x = x + _per_channel(before, x)
    grouped = x.reshape(x.shape[0], groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0)
    inverse = (variance + eps).rsqrt()
    return (grouped - mean[..., None]) * inverse[..., None], mean, inverse


@without_autocast
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
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Compute the derivatives of sum(dy * silu_of_group_norm(...)) with respect to its tensors, None where they are.

    The statistics are computed again, so that PyTorch can differentiate this with respect to x.
    """
    pixels = tuple(range(2, x.ndim))

    def over_pixels(t: Tensor) -> Tensor:
        return t.sum(pixels) if pixels else t

    standard, _, inverse = _standardize(x, before, groups, eps)
    standard = standard.reshape(x.shape)
    normalized = standard * _per_channel(weight, x) + _per_channel(bias, x)
    z = normalized if scale is None else normalized * (1 + _per_channel(scale, x))
    z = z if shift is None else z + _per_channel(shift, x)
    dz = dy * _swish_first(z, 0.0)
    dnormalized = dz if scale is None else dz * (1 + _per_channel(scale, x))
    dstandard = (dnormalized * _per_channel(weight, x)).reshape(x.shape[0], groups, -1)
    # Subtracting the mean and dividing by the deviation removes these two directions.
    projection = standard.reshape(dstandard.shape)
    along = projection * (dstandard * projection).mean(dim=2, keepdim=True)
    dx = ((dstandard - dstandard.mean(dim=2, keepdim=True) - along) * inverse[..., None]).reshape(x.shape)
    return (
        dx,
        over_pixels(dnormalized * standard).sum(0),
        over_pixels(dnormalized).sum(0),
        None if before is None else over_pixels(dx),
        None if scale is None else over_pixels(dz * normalized),
        None if shift is None else over_pixels(dz),
    )


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
    return conv3x3(h if keep is None else h * keep * gain, weight, bias), statistics


@without_autocast
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
    """Compute the derivatives of sum(dy * norm_conv3x3(...)) with respect to its tensors but the bias and `keep`.

    Args:
        filters: Whether the gradient of the weight is wanted; None otherwise.
    """
    norm = (norm_weight, norm_bias, before, scale, shift)
    dw = None
    if filters:
        h = silu_of_group_norm(x, *norm, groups, eps)
        dw = conv3x3_weight_grad(h if keep is None else h * keep * gain, dy)
    dh = conv3x3_input_grad(dy, weight)
    dh = dh if keep is None else dh * keep * gain
    dx, *grads = group_norm_silu_grads(dh, x, *norm, statistics, groups, eps)
    return (dx, dw, *grads)
