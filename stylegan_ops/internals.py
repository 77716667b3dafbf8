"""Questions to PyTorch that every call of an operator asks, and the only private names of PyTorch in this package.

A call takes a few microseconds, and only private names answer quickly enough. Where a version of PyTorch lacks one of
them, `hooks` is `PUBLIC`: the documented interface knows less, so that calls go through the registered operators, which
PyTorch's dispatcher handles by itself, at the cost of some ten microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import Function
from torch.nn import Parameter

Tensors = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Hooks:
    """One way to ask.

    Attributes:
        looks_inside: Returns whether torch.func, forward-mode autograd or torch.jit.trace looks inside operators.
        transforms_active: Returns whether a transform of torch.func is active; torch.compile can trace this call.
        readable: Returns whether kernels can read tensors, given as (x, others), and find all of them on one device.
        observed: Returns whether a torch dispatch or function mode wants to see operators.
        apply_of: Returns what `apply` of an autograd function does where nothing looks inside.
        marks_constants: Whether `run_while_compiling` has an effect.
    """

    looks_inside: Callable[[], bool]
    transforms_active: Callable[[], bool]
    readable: Callable[[Tensor, Tensors], bool]
    observed: Callable[[], bool]
    apply_of: Callable[[Any], Callable[..., Any]]
    marks_constants: bool


def run_while_compiling(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function that torch.compile runs, and whose answer it keeps, instead of tracing into it.

    This is `torch.compiler.assume_constant_result`, which imports the compiler (seconds) even if nothing is compiled.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def private_hooks() -> Hooks:
    """Ask by private names.

    Raises:
        AttributeError: This version of PyTorch lacks one of them.
    """
    core = torch._C
    transforms_active, is_tracing = core._are_functorch_transforms_active, core._is_tracing
    dispatch_modes, function_modes = core._len_torch_dispatch_stack, core._len_torch_function_stack
    has_storage, is_zero = core._has_storage, Tensor._is_zerotensor
    forward_ad._current_level  # noqa: B018  # Raises here what would be raised below.

    def looks_inside() -> bool:
        return transforms_active() or forward_ad._current_level >= 0 or is_tracing()

    def readable(x: Tensor, others: Tensors) -> bool:
        on_cpu = x.is_cpu
        for tensor in (x, *others):
            if tensor is not None and not (
                (type(tensor) is Tensor or type(tensor) is Parameter)
                # Comparing devices takes as long as all the rest.
                and ((on_cpu and tensor.is_cpu) or tensor.device == x.device)
                and has_storage(tensor)  # Not so inside of vmap, or if sparse.
                and not is_zero(tensor)  # Zeros without memory.
                and not tensor.is_neg()  # Memory that holds the negative values.
            ):
                return False
        return True

    def observed() -> bool:
        return dispatch_modes() > 0 or function_modes() > 0

    def apply_of(function: Any) -> Callable[..., Any]:
        # What Function.apply calls, after looking for transforms once more.
        return super(Function, function).apply

    return Hooks(looks_inside, transforms_active, readable, observed, apply_of, marks_constants=True)


def _public_readable(x: Tensor, others: Tensors) -> bool:
    return all(
        tensor is None
        or (
            type(tensor) in (Tensor, Parameter)
            and tensor.device == x.device
            and tensor.layout == torch.strided
            and torch.func.debug_unwrap(tensor) is tensor
            and forward_ad.unpack_dual(tensor).tangent is None
            and not tensor.is_neg()
        )
        for tensor in (x, *others)
    )


PUBLIC = Hooks(
    looks_inside=torch.jit.is_tracing,
    transforms_active=lambda: False,  # Registered operators take part in transforms.
    readable=_public_readable,
    observed=lambda: True,  # This cannot be known, so the dispatcher decides.
    apply_of=lambda function: function.apply,
    marks_constants=False,
)


def choose() -> Hooks:
    """Ask by private names where PyTorch has all of them, else by the documented interface."""
    try:
        return private_hooks()
    except AttributeError:
        return PUBLIC


hooks = choose()
