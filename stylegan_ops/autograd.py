"""Derivatives of the raw operators, for kernels that are called directly and for registered operators alike.

A raw operator computes without autograd; `registration` lists them all with their arguments: tensors first, then
options. `RULES` has the derivative of each, which calls raw operators again, so that all of them are differentiable as
often as the function they compute. `run` runs one, the way that `dispatch.route` chooses.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from stylegan_ops import dispatch, internals
from stylegan_ops.arguments import adjoint
from stylegan_ops.backends import packing, pytorch
from stylegan_ops.dispatch import Route

Gradients = tuple[Tensor | None, ...]


def needs_grad(*tensors: Tensor | None) -> bool:
    """Return whether autograd has to know of an operator on these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


# --- rules


def _remember(ctx: Any, tensors: Sequence[Tensor | None], options: tuple[Any, ...], result: Any) -> None:
    ctx.save_for_backward(*tensors)
    ctx.options = options


@dataclass(frozen=True)
class Rule:
    """Derivative of a raw operator.

    Attributes:
        tensors: Number of tensors among the arguments; they come first.
        derivative: Maps (ctx, gradients of all results) to the gradients of these tensors. `ctx.operators` holds the
            raw operators to call.
        remember: Stores in ctx what `derivative` needs, from (ctx, tensors, options, results).
    """

    tensors: int
    derivative: Callable[..., Gradients]
    remember: Callable[[Any, Sequence[Tensor | None], tuple[Any, ...], Any], None] = _remember


def _by_pytorch(name: str) -> Callable[..., Gradients]:
    """Derive an operator of `backends.pytorch` by PyTorch's own autograd."""

    def derivative(ctx: Any, *gradients: Tensor | None) -> Gradients:
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views keep what the inputs were computed from behind them.
            inputs: list[Any] = [t.view_as(t) if t is not None and t.requires_grad else t for t in ctx.saved_tensors]
            results = getattr(pytorch, name)(*inputs, *ctx.options)
            results = results if isinstance(results, tuple) else (results,)
            pairs = [
                (result, gradient)
                for result, gradient in zip(results, gradients, strict=True)
                if gradient is not None and result is not None and result.requires_grad
            ]
            wanted = [t for t in inputs if t is not None and t.requires_grad]
            found: list[Tensor | None] = [None] * len(wanted)
            if pairs:
                outputs, weights = zip(*pairs, strict=True)
                found = list(torch.autograd.grad(outputs, wanted, weights, None, create_graph, allow_unused=True))
        grads = iter(found)
        return tuple(next(grads) if t is not None and t.requires_grad else None for t in inputs)

    return derivative


def _remember_several(ctx: Any, tensors: Sequence[Tensor | None], options: tuple[Any, ...], results: Any) -> None:
    _remember(ctx, tensors, options, results)
    ctx.set_materialize_grads(False)


def _remember_statistics(ctx: Any, tensors: Sequence[Tensor | None], options: tuple[Any, ...], results: Any) -> None:
    """Save the second result too, the statistics, which are for the backward pass only."""
    statistics = results[1]
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, statistics)
    ctx.options = options


# --- bias_act


def _sum_to_bias(dx: Tensor, dim: int) -> Tensor:
    dims = [i for i in range(dx.ndim) if i != dim]
    return dx.sum(dims) if dims else dx


def _bias_act(ctx: Any, dy: Tensor) -> Gradients:
    x, b = ctx.saved_tensors
    if ctx.operators is EAGER and ctx.needs_input_grad[1] and not torch.is_grad_enabled():
        kernels, differentiable = dispatch.route("bias_act_grads", x, b, dy)
        if not differentiable:  # The kernels compute both in one pass.
            return kernels.bias_act_grads(dy, x, b, *ctx.options)
    dx = ctx.operators.bias_act_grad(dy, x, b, *ctx.options)
    db = _sum_to_bias(dx, ctx.options[0]) if ctx.needs_input_grad[1] else None
    return (dx, db)


def _bias_act_grad(ctx: Any, ddx: Tensor) -> Gradients:
    dy, x, b = ctx.saved_tensors
    ddy = d2x = d2b = None
    if ctx.needs_input_grad[0]:
        ddy = ctx.operators.bias_act_grad(ddx, x, b, *ctx.options)
    smooth = pytorch.DERIVATIVES[packing.ACTS[ctx.options[1]]].second is not None
    if smooth and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
        d2x = ctx.operators.bias_act_grad2(ddx, dy, x, b, *ctx.options)
        d2b = _sum_to_bias(d2x, ctx.options[0]) if ctx.needs_input_grad[2] else None
    return (ddy, d2x, d2b)


# --- upfirdn2d


def _remember_upfirdn2d(ctx: Any, tensors: Sequence[Tensor | None], options: tuple[Any, ...], result: Any) -> None:
    x, f = tensors
    assert x is not None
    ctx.save_for_backward(f)
    ctx.options = options
    ctx.x_shape = x.shape


def _upfirdn2d(ctx: Any, dy: Tensor) -> Gradients:
    if ctx.needs_input_grad[1]:
        raise NotImplementedError("stylegan_ops::upfirdn2d has no derivative in f; upfirdn2d.upfirdn2d has")
    (f,) = ctx.saved_tensors
    dx = ctx.operators.upfirdn2d(dy, f, *adjoint(ctx.x_shape, dy.shape, f.shape, *ctx.options))
    return (dx, None)


# --- filtered_lrelu: linear in what passes, and the activation has no second derivative


def _no_derivative_in_filters(ctx: Any, first: int) -> None:
    if ctx.needs_input_grad[first] or ctx.needs_input_grad[first + 1]:
        raise NotImplementedError("stylegan_ops::filtered_lrelu has no derivative in filters; the public function has")


def _filtered_lrelu(ctx: Any, dy: Tensor) -> Gradients:
    _no_derivative_in_filters(ctx, 1)
    dx = ctx.operators.filtered_lrelu_grad(dy, *ctx.saved_tensors, *ctx.options)
    return (dx, None, None, dx.sum([0, 2, 3]) if ctx.needs_input_grad[3] else None)


def _filtered_lrelu_grad(ctx: Any, ddx: Tensor) -> Gradients:
    _no_derivative_in_filters(ctx, 2)
    _, *inputs = ctx.saved_tensors
    return (ctx.operators.filtered_lrelu_tangent(ddx, *inputs, *ctx.options), *[None] * 4)


def _filtered_lrelu_tangent(ctx: Any, dy: Tensor) -> Gradients:
    _no_derivative_in_filters(ctx, 2)
    _, *inputs = ctx.saved_tensors
    return (ctx.operators.filtered_lrelu_grad(dy, *inputs, *ctx.options), *[None] * 4)


# --- convolutions: linear in the images and in the filters, so that each derivative is one of three maps


def _bias_gradient(ctx: Any, dy: Tensor) -> Tensor | None:
    return dy.sum([0, 2, 3]) if ctx.needs_input_grad[2] else None


def _conv3x3(ctx: Any, dy: Tensor) -> Gradients:
    x, weight, _ = ctx.saved_tensors
    dx = ctx.operators.conv3x3_input_grad(dy, weight) if ctx.needs_input_grad[0] else None
    dw = ctx.operators.conv3x3_weight_grad(x, dy) if ctx.needs_input_grad[1] else None
    return (dx, dw, _bias_gradient(ctx, dy))


def _conv3x3_input_grad(ctx: Any, ddx: Tensor) -> Gradients:
    dy, weight = ctx.saved_tensors
    ddy = ctx.operators.conv3x3(ddx, weight, None) if ctx.needs_input_grad[0] else None
    dw = ctx.operators.conv3x3_weight_grad(ddx, dy) if ctx.needs_input_grad[1] else None
    return (ddy, dw)


def _conv3x3_weight_grad(ctx: Any, ddw: Tensor) -> Gradients:
    x, dy = ctx.saved_tensors
    dx = ctx.operators.conv3x3_input_grad(dy, ddw) if ctx.needs_input_grad[0] else None
    ddy = ctx.operators.conv3x3(x, ddw, None) if ctx.needs_input_grad[1] else None
    return (dx, ddy)


def _conv1x1(ctx: Any, dy: Tensor) -> Gradients:
    x, weight, _ = ctx.saved_tensors
    dx = dw = None
    if ctx.needs_input_grad[0]:
        dx = ctx.operators.conv1x1(dy, weight.transpose(0, 1), None)
    if ctx.needs_input_grad[1]:
        dw = (dy.flatten(2) @ x.flatten(2).transpose(1, 2)).sum(0)[:, :, None, None]
    return (dx, dw, _bias_gradient(ctx, dy))


# --- attention


def _attention(ctx: Any, dy: Tensor) -> Gradients:
    (qkv,) = ctx.saved_tensors
    return (ctx.operators.attention_grad(dy, qkv),)


# --- group_norm_silu and norm_conv3x3


def _group_norm_silu(ctx: Any, dy: Tensor | None, _: None) -> Gradients:
    *tensors, statistics = ctx.saved_tensors
    if dy is None:
        return (None,) * len(tensors)
    grads = ctx.operators.group_norm_silu_grads(dy, *tensors, statistics, *ctx.options)
    # Registered operators return an empty tensor as the gradient of something that was left out.
    return tuple(None if t is None else grad for t, grad in zip(tensors, grads, strict=True))


def _norm_conv3x3(ctx: Any, dy: Tensor | None, _: None) -> Gradients:
    x, weight, _bias, *norm, keep, statistics = ctx.saved_tensors
    if dy is None:
        return (None,) * 9
    dx, dw, *grads = ctx.operators.norm_conv3x3_grads(
        dy, x, weight, *norm, keep, statistics, *ctx.options, ctx.needs_input_grad[1]
    )
    dnorm = (None if t is None else grad for t, grad in zip(norm, grads, strict=True))
    return (dx, dw if ctx.needs_input_grad[1] else None, _bias_gradient(ctx, dy), *dnorm, None)


RULES = {
    "bias_act": Rule(2, _bias_act),
    "bias_act_grad": Rule(3, _bias_act_grad),
    "bias_act_grad2": Rule(4, _by_pytorch("bias_act_grad2")),
    "upfirdn2d": Rule(2, _upfirdn2d, _remember_upfirdn2d),
    "filtered_lrelu": Rule(4, _filtered_lrelu),
    "filtered_lrelu_grad": Rule(5, _filtered_lrelu_grad),
    "filtered_lrelu_tangent": Rule(5, _filtered_lrelu_tangent),
    "conv3x3": Rule(3, _conv3x3),
    "conv3x3_input_grad": Rule(2, _conv3x3_input_grad),
    "conv3x3_weight_grad": Rule(2, _conv3x3_weight_grad),
    "conv1x1": Rule(3, _conv1x1),
    "attention": Rule(1, _attention),
    "attention_grad": Rule(2, _by_pytorch("attention_grad")),
    "group_norm_silu": Rule(6, _group_norm_silu, _remember_statistics),
    "group_norm_silu_grads": Rule(8, _by_pytorch("group_norm_silu_grads"), _remember_several),
    "norm_conv3x3": Rule(9, _norm_conv3x3, _remember_statistics),
    "norm_conv3x3_grads": Rule(10, _by_pytorch("norm_conv3x3_grads"), _remember_several),
}


# --- calls


def _function_of(name: str, rule: Rule) -> Callable[..., Any]:
    """Make a function for autograd that takes tensors, the options as one argument, and the kernels to call."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        *tensors, options, kernels = arguments  # One argument, since autograd looks at each.
        result = getattr(kernels, name)(*tensors, *options)
        ctx.operators = EAGER
        rule.remember(ctx, tensors, options, result)
        return result

    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (*rule.derivative(ctx, *gradients), None, None)

    def body(namespace: dict[str, Any]) -> None:
        namespace.update(forward=staticmethod(forward), backward=staticmethod(backward))

    camel = "".join(part[:1].upper() + part[1:] for part in name.split("_"))  # The name in autograd's graphs.
    return internals.hooks.apply_of(types.new_class(camel, (Function,), exec_body=body))


_APPLY = {name: _function_of(name, rule) for name, rule in RULES.items()}


def run(name: str, way: Route, tensors: Sequence[Tensor | None], options: tuple[Any, ...] = ()) -> Any:
    """Run a raw operator the way that `dispatch.route` has chosen for these tensors; its results are differentiable."""
    operators, differentiable = way
    if differentiable or not needs_grad(*tensors):
        return getattr(operators, name)(*tensors, *options)
    return _APPLY[name](*tensors, options, operators)


def _flat(name: str, rule: Rule) -> Callable[..., Any]:
    def operator(*arguments: Any) -> Any:
        tensors = arguments[: rule.tensors]
        return run(name, dispatch.route(name, *tensors), tensors, arguments[rule.tensors :])

    return operator


EAGER = types.SimpleNamespace(**{name: _flat(name, rule) for name, rule in RULES.items()})
"""All raw operators, each run the way that `dispatch.route` chooses, and differentiable."""
