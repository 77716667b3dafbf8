"""Which code computes `bias_act` and `upfirdn2d`, how it is differentiated, and how PyTorch's compilers see it.

The raw operators, without autograd, have one set of signatures: those defined here for PyTorch's dispatcher, as
`torch.ops.stylegan_ops`. `act` is an index into `packing.ACTS`, `clamp` is negative for none, and f is a float32
filter. Their implementations are the kernels that `select` finds for a device, and `plain`.

`bias_act` and `upfirdn2d` of this module, which the public functions call, take one of three ways:

- plain PyTorch where there are no kernels (also for other devices, dtypes and subclasses of tensors, and with the
  mode off) or where something looks inside an operator: torch.func, forward-mode autograd, torch.jit.trace;
- the registered operators where something looks at operators: torch.compile, torch.export, torch dispatch modes;
- otherwise the kernels themselves, since the dispatcher's way takes longer than a small layer's arithmetic.

All of them are differentiable as often as the activation function is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import Function

from stylegan_ops import dispatch
from stylegan_ops.backends import packing, pytorch

SCHEMAS = (
    "bias_act(Tensor x, Tensor? b, int dim, int act, float alpha, float gain, float clamp) -> Tensor",
    "bias_act_grad(Tensor dy, Tensor x, Tensor? b, int dim, int act, float alpha, float gain, float clamp) -> Tensor",
    "bias_act_grad2(Tensor ddx, Tensor dy, Tensor x, Tensor? b, int dim, int act, float alpha, float gain,"
    " float clamp) -> Tensor",
    "upfirdn2d(Tensor x, Tensor f, int up_x, int up_y, int down_x, int down_y, SymInt pad_x0, SymInt pad_x1,"
    " SymInt pad_y0, SymInt pad_y1, bool flip, float gain) -> Tensor",
)

_library = torch.library.Library("stylegan_ops", "DEF")
for _schema in SCHEMAS:
    _library.define(_schema, tags=torch.Tag.pt2_compliant_tag)
REGISTERED = SimpleNamespace(
    bias_act=torch.ops.stylegan_ops.bias_act.default,
    bias_act_grad=torch.ops.stylegan_ops.bias_act_grad.default,
    bias_act_grad2=torch.ops.stylegan_ops.bias_act_grad2.default,
    upfirdn2d=torch.ops.stylegan_ops.upfirdn2d.default,
)


# --- the way to take


def route(x: Tensor, *others: Tensor | None) -> tuple[Any, bool]:
    """Choose what computes with these tensors.

    Returns:
        The raw operators to call, and whether PyTorch can differentiate them.
    """
    if torch.compiler.is_compiling():
        # What ONNX has no operator for, it can only take as a graph of PyTorch's own.
        if torch._C._are_functorch_transforms_active() or torch.onnx.is_in_onnx_export():
            return pytorch, True
        # Finding kernels may build them, which torch.compile must not trace into.
        traced = torch.compiler.is_dynamo_compiling()
        found = _kernels_serve(x.device, x.dtype) if traced else _kernels_for(x) is not None
        return (REGISTERED if found else pytorch), True
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or torch._C._is_tracing():
        return pytorch, True
    for tensor in (x, *others):
        if tensor is not None and not (
            (type(tensor) is Tensor or type(tensor) is torch.nn.Parameter)
            # Comparing devices takes as long as all the rest.
            and ((tensor.is_cpu and x.is_cpu) or tensor.device == x.device)
            and torch._C._has_storage(tensor)  # Not so inside of vmap, or if sparse.
            and not tensor._is_zerotensor()  # Zeros without memory.
            and not tensor.is_neg()  # Memory that holds the negative values.
        ):
            return pytorch, True
    kernels = _kernels_for(x)
    if kernels is None:
        return pytorch, True
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return REGISTERED, True
    return kernels, False


def _kernels_for(x: Tensor) -> Any:
    return dispatch.implementation_for(x) if x.dtype in packing.DTYPES else None


def _kernels_serve(device: torch.device, dtype: torch.dtype) -> bool:
    return _kernels_for(torch.empty(0, device=device, dtype=dtype)) is not None


# What torch.compiler.assume_constant_result does, which imports the compiler (seconds) even where nothing is compiled.
_kernels_serve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd has to know of an operator on these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


# --- differentiable operators


def bias_act(x: Tensor, b: Tensor | None, dim: int, act: int, alpha: float, gain: float, clamp: float) -> Tensor:
    """Compute clamp(gain * act(x + b)); b has x's dtype."""
    operators, differentiable = route(x, b)
    if differentiable or not needs_grad(x, b):
        return operators.bias_act(x, b, dim, act, alpha, gain, clamp)
    return _apply_bias_act(x, b, (dim, act, alpha, gain, clamp), operators)


def bias_act_grad(
    dy: Tensor, x: Tensor, b: Tensor | None, dim: int, act: int, alpha: float, gain: float, clamp: float
) -> Tensor:
    """Compute the derivative of sum(dy * bias_act(x, b, ...)) with respect to x."""
    operators, differentiable = route(x, b, dy)
    if differentiable or not needs_grad(dy, x, b):
        return operators.bias_act_grad(dy, x, b, dim, act, alpha, gain, clamp)
    return _BiasActGrad.apply(dy, x, b, (dim, act, alpha, gain, clamp), operators)


def bias_act_grad2(ddx: Tensor, dy: Tensor, x: Tensor, b: Tensor | None, *options: Any) -> Tensor:
    """Compute the derivative of sum(ddx * bias_act_grad(dy, x, b, ...)) with respect to x."""
    operators, differentiable = route(x, b, dy, ddx)
    if not differentiable and needs_grad(ddx, dy, x, b):
        operators = pytorch  # There are no kernels for third derivatives.
    return operators.bias_act_grad2(ddx, dy, x, b, *options)


def upfirdn2d(x: Tensor, f: Tensor, *options: Any) -> Tensor:
    """Upsample, pad, filter and downsample; `options` are the other arguments of the raw operator."""
    operators, differentiable = route(x, f)
    records = torch.is_grad_enabled()
    if operators is not pytorch:
        # The kernels' filters are constants of single precision.
        if records and f.requires_grad:
            return pytorch.upfirdn2d(x, f, *options)
        if f.dtype != torch.float32:
            if f.dtype == torch.float64 == x.dtype:
                return pytorch.upfirdn2d(x, f, *options)
            f = f.to(torch.float32)
    if differentiable or not records or not x.requires_grad:
        return operators.upfirdn2d(x, f, *options)
    return _apply_upfirdn2d(x, f, options, operators)


_DIFFERENTIABLE = SimpleNamespace(bias_act_grad=bias_act_grad, bias_act_grad2=bias_act_grad2, upfirdn2d=upfirdn2d)


# --- derivatives, of the kernels as of the registered operators


def _sum_to_bias(dx: Tensor, dim: int) -> Tensor:
    dims = [i for i in range(dx.ndim) if i != dim]
    return dx.sum(dims) if dims else dx


def _bias_act_derivative(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, b = ctx.saved_tensors
    if ctx.operators is _DIFFERENTIABLE and ctx.needs_input_grad[1] and not torch.is_grad_enabled():
        kernels, _ = route(x, b, dy)
        if hasattr(kernels, "bias_act_grads"):  # Has both in one pass.
            return kernels.bias_act_grads(dy, x, b, *ctx.options)
    dx = ctx.operators.bias_act_grad(dy, x, b, *ctx.options)
    db = _sum_to_bias(dx, ctx.options[0]) if ctx.needs_input_grad[1] else None
    return (dx, db)


def _bias_act_grad_derivative(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, b = ctx.saved_tensors
    ddy = d2x = d2b = None
    if ctx.needs_input_grad[0]:
        ddy = ctx.operators.bias_act_grad(ddx, x, b, *ctx.options)
    smooth = pytorch.DERIVATIVES[packing.ACTS[ctx.options[1]]].second is not None
    if smooth and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
        d2x = ctx.operators.bias_act_grad2(ddx, dy, x, b, *ctx.options)
        d2b = _sum_to_bias(d2x, ctx.options[0]) if ctx.needs_input_grad[2] else None
    return (ddy, d2x, d2b)


def _bias_act_grad2_derivative(ctx: Any, d3x: Tensor) -> tuple[Tensor | None, ...]:
    if pytorch.DERIVATIVES[packing.ACTS[ctx.options[1]]].second is None:
        return (None,) * 4
    # By plain PyTorch's autograd, in views of the inputs, behind which is whatever these were computed from.
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs: list[Any] = [t.view_as(t) if t is not None and t.requires_grad else t for t in ctx.saved_tensors]
        wanted = [t for t in inputs if t is not None and t.requires_grad]
        result = pytorch.bias_act_grad2(*inputs, *ctx.options)
        grads = iter(torch.autograd.grad(result, wanted, d3x, create_graph=create_graph, allow_unused=True))
    return tuple(next(grads) if t is not None and t.requires_grad else None for t in inputs)


def _upfirdn2d_derivative(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.needs_input_grad[1]:
        raise NotImplementedError("stylegan_ops::upfirdn2d has no derivative in f; upfirdn2d.upfirdn2d has")
    (f,) = ctx.saved_tensors
    dx = ctx.operators.upfirdn2d(dy, f, *adjoint(ctx.x_shape, dy.shape, f.shape, *ctx.options))
    return (dx, None)


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
    """The options with which upfirdn2d maps gradients of y to gradients of x.

    Along one axis y[o] = sum over i of x[i] * k[i * up + pad0 - o * down], where k are the taps of a correlation.
    Read as a sum over o that is the same with up and down exchanged, k reversed and pad0' = taps - 1 - pad0; pad1'
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


# To autograd, an operator's options are one argument, since it looks at each.


class _BiasAct(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, b: Tensor | None, options: tuple[Any, ...], kernels: Any) -> Tensor:
        _remember(ctx, (x, b), options, _DIFFERENTIABLE)
        return kernels.bias_act(x, b, *options)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return (*_bias_act_derivative(ctx, dy), None, None)


class _BiasActGrad(Function):
    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, b: Tensor | None, options: tuple[Any, ...], kernels: Any) -> Tensor:
        _remember(ctx, (dy, x, b), options, _DIFFERENTIABLE)
        return kernels.bias_act_grad(dy, x, b, *options)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
        return (*_bias_act_grad_derivative(ctx, ddx), None, None)


class _Upfirdn2d(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Tensor, options: tuple[Any, ...], kernels: Any) -> Tensor:
        _remember(ctx, (f,), options, _DIFFERENTIABLE)
        ctx.x_shape = x.shape
        return kernels.upfirdn2d(x, f, *options)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return (*_upfirdn2d_derivative(ctx, dy), None, None)


# What Function.apply calls, after looking for torch.func's transforms, which route() has done.
_apply_bias_act = super(Function, _BiasAct).apply
_apply_upfirdn2d = super(Function, _Upfirdn2d).apply


def _remember(ctx: Any, tensors: tuple[Tensor | None, ...], options: tuple[Any, ...], operators: Any) -> None:
    ctx.save_for_backward(*tensors)
    ctx.options = options
    ctx.operators = operators


def _remember_bias_act(ctx: Any, arguments: tuple[Any, ...]) -> None:
    _remember(ctx, arguments[:-5], arguments[-5:], REGISTERED)


def _remember_upfirdn2d(ctx: Any, arguments: tuple[Any, ...]) -> None:
    x, f, *options = arguments
    _remember(ctx, (f,), tuple(options), REGISTERED)
    ctx.x_shape = x.shape


# --- registration


def _memory_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if packing.is_channels_last(x) else torch.contiguous_format


def _register(name: str, position: int, derivative: Callable[..., Any], remember: Callable[..., None]) -> None:
    """Register what computes, predicts the shape of and differentiates the operator `name`.

    Args:
        name: of a raw operator.
        position: where x is among its arguments; the result has its dtype and lies in memory like it.
        derivative: maps (ctx, gradient of the result) to the gradients of the tensors among the arguments.
        remember: stores in ctx what `derivative` needs.
    """

    def compute(*arguments: Any) -> Tensor:
        x = arguments[position]
        kernels = _kernels_for(x)
        y = getattr(pytorch if kernels is None else kernels, name)(*arguments)
        # PyTorch's compilers rely on the result being new, and where the prediction says.
        return y.clone() if y is x else y.contiguous(memory_format=_memory_format(x))

    def predict(*arguments: Any) -> Tensor:
        x = arguments[position]
        shape = _upfirdn2d_shape(*arguments) if name == "upfirdn2d" else x.shape
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_memory_format(x))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs)

    def differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (*derivative(ctx, gradient), *[None] * len(ctx.options))

    for key in ("CPU", "CUDA"):
        _library.impl(name, compute, key)
    qualified = f"stylegan_ops::{name}"
    torch.library.register_fake(qualified, predict, lib=_library)
    torch.library.register_autograd(qualified, differentiate, setup_context=setup_context, lib=_library)


def _upfirdn2d_shape(
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
) -> tuple[int, int, int, int]:
    height = packing.upfirdn2d_size(x.shape[2], f.shape[0], up_y, down_y, pad_y0, pad_y1)
    width = packing.upfirdn2d_size(x.shape[3], f.shape[-1], up_x, down_x, pad_x0, pad_x1)
    return (x.shape[0], x.shape[1], height, width)


_register("bias_act", 0, _bias_act_derivative, _remember_bias_act)
_register("bias_act_grad", 1, _bias_act_grad_derivative, _remember_bias_act)
_register("bias_act_grad2", 2, _bias_act_grad2_derivative, _remember_bias_act)
_register("upfirdn2d", 0, _upfirdn2d_derivative, _remember_upfirdn2d)
