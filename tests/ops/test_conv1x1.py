"""Convolutions of single pixels against PyTorch's."""

from __future__ import annotations

import pytest
import torch

from stylegan_ops import dispatch
from stylegan_ops.conv1x1 import conv1x1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [0, 3, 20])
def test_results_and_gradients(kernels_named, monkeypatch, batch, dtype):
    kernels = kernels_named("cpu")
    monkeypatch.setattr(dispatch, "implementation_for", lambda x: kernels)
    torch.manual_seed(0)
    shapes = (batch, 6, 5, 7), (4, 6, 1, 1), (4,)
    tensors = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    y, expected = conv1x1(*tensors), torch.conv2d(*tensors)
    assert ("Slow" in type(y.grad_fn).__name__) == (batch == 20 and dtype == torch.float32)
    dy = torch.randn_like(y)
    torch.testing.assert_close(y, expected)
    for result, correct in zip(
        torch.autograd.grad(y, tensors, dy), torch.autograd.grad(expected, tensors, dy), strict=True
    ):
        torch.testing.assert_close(result, correct, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)


def test_second_derivatives_layouts_and_transforms(kernels_named, monkeypatch):
    kernels = kernels_named("cpu")
    monkeypatch.setattr(dispatch, "implementation_for", lambda x: kernels)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(20, 6, 5, 7), torch.randn(4, 6, 1, 1), torch.randn(4)

    def penalty(convolve):
        x.requires_grad_(), weight.requires_grad_()
        (dx,) = torch.autograd.grad(convolve(x, weight, bias).square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (x, weight))

    for result, correct in zip(penalty(conv1x1), penalty(torch.conv2d), strict=True):
        torch.testing.assert_close(result, correct, rtol=1e-3, atol=1e-2)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(conv1x1(last, weight, bias), torch.conv2d(x, weight, bias))
    mapped = torch.func.vmap(conv1x1, (0, None, None))(x[None].detach(), weight.detach(), bias)
    torch.testing.assert_close(mapped[0], torch.conv2d(x, weight, bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv1x1(x, weight, bias).dtype == torch.bfloat16
