"""The raw operators as PyTorch knows them, `torch.ops.stylegan_ops`: arguments, results, derivatives and FLOPs.

Tensors come first, then options. `act` is an index into `packing.ACTS`, `clamp` is negative for none, and f is a
float32 filter. What computes them is chosen when they run: the kernels that `dispatch` finds for the tensors, else
`backends.pytorch`. Importing the package `stylegan_ops` registers them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from stylegan_ops import dispatch
from stylegan_ops.autograd import RULES, Rule
from stylegan_ops.backends import packing, pytorch

_BIAS_ACT = "int dim, int act, float alpha, float gain, float clamp) -> Tensor"
_FILTERED_LRELU = (
    "Tensor x, Tensor fu, Tensor fd, Tensor? b, int up, int down, SymInt pad_x0, SymInt pad_x1, SymInt pad_y0, "
    "SymInt pad_y1, float gain, float slope, float clamp, bool flip) -> Tensor"
)
_NORM = "Tensor? before, Tensor? scale, Tensor? shift"

SCHEMAS = {
    "bias_act": f"(Tensor x, Tensor? b, {_BIAS_ACT}",
    "bias_act_grad": f"(Tensor dy, Tensor x, Tensor? b, {_BIAS_ACT}",
    "bias_act_grad2": f"(Tensor ddx, Tensor dy, Tensor x, Tensor? b, {_BIAS_ACT}",
    "upfirdn2d": "(Tensor x, Tensor f, int up_x, int up_y, int down_x, int down_y, SymInt pad_x0, SymInt pad_x1, "
    "SymInt pad_y0, SymInt pad_y1, bool flip, float gain) -> Tensor",
    "filtered_lrelu": f"({_FILTERED_LRELU}",
    "filtered_lrelu_grad": f"(Tensor dy, {_FILTERED_LRELU}",
    "filtered_lrelu_tangent": f"(Tensor dx, {_FILTERED_LRELU}",
    "conv3x3": "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    "conv3x3_input_grad": "(Tensor dy, Tensor weight) -> Tensor",
    "conv3x3_weight_grad": "(Tensor x, Tensor dy) -> Tensor",
    "conv1x1": "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    "attention": "(Tensor qkv) -> Tensor",
    "attention_grad": "(Tensor dy, Tensor qkv) -> Tensor",
    "group_norm_silu": f"(Tensor x, Tensor weight, Tensor bias, {_NORM}, int groups, float eps) -> (Tensor, Tensor)",
    "group_norm_silu_grads": f"(Tensor dy, Tensor x, Tensor weight, Tensor bias, {_NORM}, Tensor statistics, "
    "int groups, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "norm_conv3x3": f"(Tensor x, Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias, {_NORM}, "
    "Tensor? keep, int groups, float eps, float gain) -> (Tensor, Tensor)",
    "norm_conv3x3_grads": f"(Tensor dy, Tensor x, Tensor weight, Tensor norm_weight, Tensor norm_bias, {_NORM}, "
    "Tensor? keep, Tensor statistics, int groups, float eps, float gain, bool filters) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
}


# --- shapes of results, as PyTorch's compilers ask for them


def _memory_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if packing.is_channels_last(x) else torch.contiguous_format


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=_memory_format(x))


def _like_or_nothing(x: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
    """Predict the gradients of tensors; registered operators return an empty one if there is nothing to return."""
    return tuple(x.new_empty(0) if t is None else x.new_empty(t.shape) for t in others)


def _upfirdn2d(
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
    height = packing.upfirdn2d_size(x.shape[2], f.shape[0], up_y, down_y, pad_y0, pad_y1)
    width = packing.upfirdn2d_size(x.shape[3], f.shape[-1], up_x, down_x, pad_x0, pad_x1)
    shape = (x.shape[0], x.shape[1], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_memory_format(x))


def _filtered_lrelu(x: Tensor, fu: Tensor, fd: Tensor, b: Tensor | None, up: int, down: int, *rest: Any) -> Tensor:
    left, right, top, bottom = rest[:4]
    sizes = ((fu.shape[0], fd.shape[0], top, bottom), (fu.shape[-1], fd.shape[-1], left, right))
    height, width = (
        packing.upfirdn2d_size(packing.upfirdn2d_size(size, taps_u, up, 1, *pads), taps_d, 1, down, 0, 0)
        for size, (taps_u, taps_d, *pads) in zip(x.shape[2:], sizes, strict=True)
    )
    return x.new_empty((x.shape[0], x.shape[1], height, width))


def _convolution(x: Tensor, weight: Tensor, *bias: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0], *x.shape[2:]))


def _statistics(x: Tensor, groups: int) -> Tensor:
    return x.new_empty((2, x.shape[0], groups))


def _group_norm_silu(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), _statistics(x, rest[-2])


def _norm_conv3x3(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _convolution(x, weight), _statistics(x, rest[-3])


def _norm_conv3x3_grads(dy: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    norm, filters = rest[:5], rest[-1]
    return _like_or_nothing(x, x, weight if filters else None, *norm)


PREDICTIONS: dict[str, Callable[..., Any]] = {
    "bias_act": lambda x, *rest: _like(x),
    "bias_act_grad": lambda dy, x, *rest: _like(x),
    "bias_act_grad2": lambda ddx, dy, x, *rest: _like(x),
    "upfirdn2d": _upfirdn2d,
    "filtered_lrelu": _filtered_lrelu,
    "filtered_lrelu_grad": lambda dy, x, *rest: x.new_empty(x.shape),
    "filtered_lrelu_tangent": lambda dx, *rest: _filtered_lrelu(*rest),
    "conv3x3": _convolution,
    "conv3x3_input_grad": lambda dy, weight: dy.new_empty((dy.shape[0], weight.shape[1], *dy.shape[2:])),
    "conv3x3_weight_grad": lambda x, dy: x.new_empty((dy.shape[1], x.shape[1], 3, 3)),
    "conv1x1": _convolution,
    "attention": lambda qkv: qkv.new_empty((*qkv.shape[:3], qkv.shape[4])),
    "attention_grad": lambda dy, qkv: qkv.new_empty(qkv.shape),
    "group_norm_silu": _group_norm_silu,
    "group_norm_silu_grads": lambda dy, *tensors_and_options: _like_or_nothing(dy, *tensors_and_options[:6]),
    "norm_conv3x3": _norm_conv3x3,
    "norm_conv3x3_grads": _norm_conv3x3_grads,
}


# --- registration

_library = torch.library.Library("stylegan_ops", "DEF")


def _new(result: Tensor | None, x: Tensor, arguments: tuple[Any, ...], format: torch.memory_format) -> Tensor:
    if result is None:
        return x.new_empty(0)
    if any(result is argument for argument in arguments):
        return result.clone(memory_format=format)
    return result.contiguous(memory_format=format)


def _register(name: str, rule: Rule) -> None:
    """Register what computes, predicts the results of and differentiates a raw operator."""
    layout_of = {"bias_act": 0, "bias_act_grad": 1, "bias_act_grad2": 2, "upfirdn2d": 0}.get(name)

    @pytorch.without_autocast
    def compute(*arguments: Any) -> Any:
        tensors = arguments[: rule.tensors]
        kernels = dispatch.kernels_for(name, *tensors)
        results = getattr(pytorch if kernels is None else kernels, name)(*arguments)
        # PyTorch's compilers rely on results that are new, and lie in memory as predicted.
        format = torch.contiguous_format if layout_of is None else _memory_format(arguments[layout_of])
        if isinstance(results, tuple):
            return tuple(_new(result, tensors[0], tensors, format) for result in results)
        return _new(results, tensors[0], tensors, format)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.operators = dispatch.registered
        rule.remember(ctx, inputs[: rule.tensors], inputs[rule.tensors :], output)

    def differentiate(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*rule.derivative(ctx, *gradients), *[None] * len(ctx.options))

    _library.define(name + SCHEMAS[name], tags=torch.Tag.pt2_compliant_tag)
    for key in ("CPU", "CUDA"):
        _library.impl(name, compute, key)
    qualified = f"stylegan_ops::{name}"
    torch.library.register_fake(qualified, PREDICTIONS[name], lib=_library)
    torch.library.register_autograd(qualified, differentiate, setup_context=setup_context, lib=_library)


for _name, _rule in RULES.items():
    _register(_name, _rule)


# --- multiplications and additions, for `torch.utils.flop_counter.FlopCounterMode`; these get shapes


def _flop_upfirdn2d(x: Any, f: Any, up_x: int, up_y: int, *options: Any, out_shape: Any, **_: Any) -> int:
    taps = math.prod(f) if len(f) == 2 else f[0] ** 2
    return int(2 * math.prod(out_shape) * taps / (up_x * up_y))  # Zeros between pixels need no arithmetic.


def _flop_filtered_lrelu(x: Any, fu: Any, fd: Any, b: Any, up: int, down: int, *_: Any, **__: Any) -> int:
    def taps(f: Any) -> int:
        return math.prod(f) if len(f) == 2 else f[0] ** 2

    # The finer grid is up x up as large as x; zeros between pixels need no arithmetic there.
    return int(2 * math.prod(x) * (taps(fu) + taps(fd) * up**2 / down**2))


def _flop_convolution(pixels: Any, weight: Any) -> int:
    return 2 * pixels[0] * math.prod(pixels[2:]) * math.prod(weight)


def _flop_attention(qkv: Any) -> int:
    n, heads, channels, _, length = qkv
    return 4 * n * heads * channels * length**2  # Two products.


FLOPS: dict[str, Callable[..., int]] = {
    "upfirdn2d": _flop_upfirdn2d,
    "filtered_lrelu": _flop_filtered_lrelu,
    "filtered_lrelu_grad": lambda dy, *rest, **_: 2 * _flop_filtered_lrelu(*rest),  # The grid is computed again.
    "filtered_lrelu_tangent": lambda dx, *rest, **_: 2 * _flop_filtered_lrelu(*rest),
    "conv3x3": lambda x, weight, *_, **__: _flop_convolution(x, weight),
    "conv3x3_input_grad": lambda dy, weight, *_, **__: _flop_convolution(dy, weight),
    "conv3x3_weight_grad": lambda x, dy, *_, out_shape, **__: _flop_convolution(x, out_shape),
    "conv1x1": lambda x, weight, *_, **__: _flop_convolution(x, weight),
    "attention": lambda qkv, **_: _flop_attention(qkv),
    "attention_grad": lambda dy, qkv, **_: 5 * _flop_attention(qkv) // 2,  # Five; the weights are computed again.
    "norm_conv3x3": lambda x, weight, *_, **__: _flop_convolution(x, weight),
    "norm_conv3x3_grads": lambda dy, x, weight, *rest, **_: (1 + rest[-1]) * _flop_convolution(dy, weight),
}

for _name, _formula in FLOPS.items():
    register_flop_formula(getattr(torch.ops.stylegan_ops, _name))(_formula)
