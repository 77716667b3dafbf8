"""The raw operators in plain PyTorch: on every device, under every transform, differentiable by PyTorch itself.

They have the signatures of the kernels (see `library`), and compute whatever no kernel is there for. `bias_act` is
the reference; its derivatives are written out, since inside a registered operator there is no autograd to ask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_ops import reference
from stylegan_ops.arguments import Padding, Size, conv2d_padded, pad_or_crop
from stylegan_ops.backends.packing import ACTS
from stylegan_ops.reference import filter_kernel

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al., arXiv 1706.02515, equation 14
SOFTPLUS_THRESHOLD = 20.0  # Above it PyTorch's softplus is the identity.


@dataclass(frozen=True)
class Derivatives:
    """Derivatives of an activation function, both maps of (x, alpha); second is None where it is zero."""

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


def _autocast_is_on(x: Tensor) -> bool:
    # It would change the dtype of what convolutions and some activations return.
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def bias_act(x: Tensor, b: Tensor | None, dim: int, act: int, alpha: float, gain: float, clamp: float) -> Tensor:
    """Compute clamp(gain * act(x + b))."""
    if _autocast_is_on(x):
        with torch.autocast(x.device.type, enabled=False):
            return bias_act(x, b, dim, act, alpha, gain, clamp)
    return reference.bias_act(x, b, dim, ACTS[act], alpha, gain, None if clamp < 0 else clamp)


def bias_act_grad(
    dy: Tensor, x: Tensor, b: Tensor | None, dim: int, act: int, alpha: float, gain: float, clamp: float
) -> Tensor:
    """Compute dy * gain * act'(x + b), zero where the clamp holds."""
    biased = reference.bias_act(x, b, dim, gain=1)
    dx = dy * DERIVATIVES[ACTS[act]].first(biased, alpha) * gain
    return _zero_where_clamped(dx, biased, act, alpha, gain, clamp)


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
    if _autocast_is_on(x):
        with torch.autocast(x.device.type, enabled=False):
            return upfirdn2d(x, f, up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1, flip, gain)
    channels, taps_x, taps_y = x.shape[1], f.shape[-1], f.shape[0]
    if up_x == 1 and up_y == 1:
        sides = Padding(pad_x0, pad_x1, pad_y0, pad_y1)
        return conv2d_padded(x, filter_kernel(f, x, flip, gain), sides, stride=Size(down_x, down_y), groups=channels)

    # A transposed convolution is the full convolution of the zero-stuffed image, computed without the zeros.
    # The wanted part leaves out taps - 1 - padding pixels at its begin and taps - up - padding at its end.
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
