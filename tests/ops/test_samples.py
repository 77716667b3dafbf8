"""Every implementation of every operator on its samples: values and derivatives are those of the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_ops.backends import pytorch
from stylegan_ops.backends.packing import ACTS
from stylegan_ops.functional import (
    Norm,
    attention,
    bias_act,
    conv1x1,
    conv3x3,
    filtered_lrelu,
    group_norm_silu,
    norm_conv3x3,
    upfirdn2d,
)
from stylegan_ops.samples import ANY_DTYPE, DEFINITIONS, Sample, sample_inputs

SAMPLES = [sample for name in DEFINITIONS for sample in sample_inputs(name)]


def call_bias_act(x, b, dim, act, alpha, gain, clamp):
    return bias_act(x, b, dim, ACTS[act], alpha, gain, None if clamp < 0 else clamp)


def call_upfirdn2d(x, f, up_x, up_y, down_x, down_y, left, right, top, bottom, flip, gain):
    return upfirdn2d(x, f, (up_x, up_y), (down_x, down_y), (left, right, top, bottom), flip, gain)


def call_filtered_lrelu(x, fu, fd, b, up, down, left, right, top, bottom, gain, slope, clamp, flip):
    clamp = None if clamp < 0 else clamp
    return filtered_lrelu(x, fu, fd, b, up, down, (left, right, top, bottom), gain, slope, clamp, flip)


def call_group_norm_silu(x, weight, bias, before, scale, shift, groups, eps):
    return group_norm_silu(x, groups, weight, bias, eps, before, scale, shift)


def call_norm_conv3x3(x, weight, bias, norm_weight, norm_bias, before, scale, shift, keep, groups, eps, gain):
    return norm_conv3x3(x, Norm(groups, norm_weight, norm_bias, eps, before, scale, shift), weight, bias, keep, gain)


PUBLIC: dict[str, Callable[..., Tensor]] = {
    "bias_act": call_bias_act,
    "upfirdn2d": call_upfirdn2d,
    "filtered_lrelu": call_filtered_lrelu,
    "conv3x3": conv3x3,
    "conv1x1": conv1x1,
    "attention": attention,
    "group_norm_silu": call_group_norm_silu,
    "norm_conv3x3": call_norm_conv3x3,
}
# What the kernels are called for: the value, its derivative, and that one's.
KERNELS = {
    "bias_act": {"bias_act", "bias_act_grad"},
    "upfirdn2d": {"upfirdn2d"},
    "filtered_lrelu": {"filtered_lrelu", "filtered_lrelu_grad", "filtered_lrelu_tangent"},
    "conv3x3": {"conv3x3", "conv3x3_input_grad", "conv3x3_weight_grad"},
    "conv1x1": {"conv1x1"},
    "attention": {"attention", "attention_grad"},
    "group_norm_silu": {"group_norm_silu", "group_norm_silu_grads"},
    "norm_conv3x3": {"norm_conv3x3", "norm_conv3x3_grads"},
}


def derivatives(sample: Sample, y: Tensor, orders: int) -> list[Tensor]:
    """The value, and derivatives of weighted sums of all derivatives of the order before, all in turn."""
    generator = torch.Generator().manual_seed(0)
    wanted, results, last = list(sample.leaves), [y], [y]
    for _ in range(orders):
        weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in last]
        weights = [weight.requires_grad_() for weight in weights]
        total = sum((t * weight).sum() for t, weight in zip(last, weights, strict=True))
        found = torch.autograd.grad(total, wanted, create_graph=True, allow_unused=True)
        last = [torch.zeros_like(t) if grad is None else grad for t, grad in zip(wanted, found, strict=True)]
        results += last
        if not any(t.requires_grad for t in last):
            break
        wanted += weights
    return results


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    # Sums may cancel, so nothing is measured by less than one.
    scale = expected.abs().max().clamp(min=1).item()
    error = (actual.double() - expected).abs().max().item()
    assert error <= tolerance * scale, f"off by {error:.2e} where the largest value is {scale:.2e}"


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_values_and_derivatives(sample: Sample, implementation: Any) -> None:
    any_precision = sample.name in ANY_DTYPE or not implementation.single
    given = sample.to(torch.float64 if any_precision else torch.float32).with_leaves()
    exact = sample.with_leaves()
    if not any_precision:
        exact = given.to(torch.float64).with_leaves()
    orders = 3 if sample.name == "bias_act" else 2
    if sample.name == "attention" and implementation.name in ("pytorch", "sim"):
        orders = 1  # There is no CUDA kernel, and PyTorch's own attention has no second derivative.
    results = derivatives(given, PUBLIC[sample.name](*given.tensors, *given.options), orders)
    expected = derivatives(exact, exact.defined(), orders)
    tolerance = 1e-11 if any_precision else 1e-4
    for result, correct in zip(results, expected, strict=False):
        assert result.dtype == given.leaves[0].dtype
        assert_near(result, correct, tolerance)
    # Autograd may find out that a derivative vanishes in one of them only.
    for vanishing in (*results[len(expected) :], *expected[len(results) :]):
        assert not vanishing.any()
    if implementation.name == "pytorch" or (implementation.name == "sim" and not any_precision):
        assert not implementation.calls
    elif implementation.name != "sim" or sample.name in ANY_DTYPE:
        needed = KERNELS[sample.name]
        if sample.name == "bias_act" and pytorch.DERIVATIVES[ACTS[sample.options[1]]].second is not None:
            needed = needed | {"bias_act_grad2"}
        assert needed <= implementation.calls.keys()


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.name not in ANY_DTYPE], ids=str)
def test_gradients_of_some_tensors(sample: Sample, implementation: Any) -> None:
    """Each alone, and while none else requires a gradient."""
    single = sample.to(torch.float32)
    every = single.with_leaves()
    y = PUBLIC[sample.name](*every.tensors, *every.options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    for index, correct in zip(every.differentiable, torch.autograd.grad(y, every.leaves, dy), strict=True):
        leaf = single.tensors[index].clone().requires_grad_()
        tensors = [leaf if i == index else t for i, t in enumerate(single.tensors)]
        (result,) = torch.autograd.grad(PUBLIC[sample.name](*tensors, *single.options), leaf, dy)
        assert_near(result, correct.double(), 1e-5)


def test_every_operator_is_tested() -> None:
    assert PUBLIC.keys() == KERNELS.keys() == DEFINITIONS.keys()
    for name in DEFINITIONS:
        assert len({str(sample) for sample in sample_inputs(name)}) == len(sample_inputs(name)) > 0
