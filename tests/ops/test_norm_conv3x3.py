"""Norm, SiLU, dropout and convolution in one: the same as one after the other, with less kept in memory."""

from __future__ import annotations

import pytest
import torch

from stylegan_ops import dispatch
from stylegan_ops.conv3x3 import conv3x3
from stylegan_ops.group_norm_silu import group_norm_silu
from stylegan_ops.norm_conv3x3 import Norm, norm_conv3x3

SHAPE = (4, 16, 12, 12)


@pytest.fixture(autouse=True)
def kernels(kernels_named, monkeypatch):
    kernels = kernels_named("cpu")
    monkeypatch.setattr(dispatch, "implementation_for", lambda x: kernels)


def tensors(dtype=torch.float32, shape=SHAPE, out_channels=24):
    """x, weight, bias, norm's weight and bias, before, scale, shift."""
    torch.manual_seed(0)
    n, c = shape[:2]
    shapes = shape, (out_channels, c, 3, 3), (out_channels,), (c,), (c,), (n, c), (n, c), (n, c)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def fused(keep, gain, x, weight, bias, *norm):
    return norm_conv3x3(x, Norm(4, norm[0], norm[1], 1e-5, *norm[2:]), weight, bias, keep, gain)


def in_turn(keep, gain, x, weight, bias, *norm):
    h = group_norm_silu(x, 4, norm[0], norm[1], 1e-5, *norm[2:])
    return conv3x3(h if keep is None else h * keep * gain, weight, bias)


@pytest.mark.parametrize("drops", [False, True])
def test_it_is_the_same_as_in_turn(drops):
    inputs = tensors()
    keep = torch.rand(SHAPE) > 0.3 if drops else None
    y, expected = fused(keep, 1.4, *inputs), in_turn(keep, 1.4, *inputs)
    assert type(y.grad_fn).__name__ == "NormConv3x3Backward"
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    dy = torch.randn_like(y)
    for result, correct in zip(
        torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True
    ):
        torch.testing.assert_close(result, correct, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wanted", [[0], [1, 2], [5], [3, 6]])
def test_some_of_the_gradients(wanted):
    inputs = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors())]
    y, expected = fused(None, 1.0, *inputs), in_turn(None, 1.0, *inputs)
    assert type(y.grad_fn).__name__ == "NormConv3x3Backward"
    dy, leaves = torch.randn_like(y), [inputs[i] for i in wanted]
    for result, correct in zip(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True
    ):
        torch.testing.assert_close(result, correct, rtol=1e-4, atol=1e-4)


def test_second_derivatives():
    keep = torch.rand(SHAPE) > 0.3

    def penalty(function, dtype):
        inputs = tensors(dtype)
        y = function(keep, 1.5, *inputs)
        grads = torch.autograd.grad(y.square().sum(), inputs[:2], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads) * 1e-6, inputs)

    expected = penalty(in_turn, torch.float64)
    for result, correct in zip(penalty(fused, torch.float32), expected, strict=True):
        error = (result.double() - correct).abs().max() / correct.abs().max().clamp(min=1e-3)
        assert error < 1e-3


def test_float64_takes_the_plain_way():
    inputs = tensors(torch.float64, (2, 4, 3, 3), 3)
    keep = torch.rand(2, 4, 3, 3) > 0.3
    assert torch.equal(fused(keep, 1.5, *inputs), in_turn(keep, 1.5, *inputs))
    assert torch.autograd.gradcheck(lambda *t: fused(keep, 1.5, *t), inputs, fast_mode=True)


def test_what_is_convolved_is_not_kept():
    def kept(function):
        inputs, saved = tensors(), {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.update({t.data_ptr(): t}) or t, lambda t: t):
            y = function(None, 1.0, *inputs)
        assert y.requires_grad
        return sum(t.numel() for t in saved.values() if t.shape == SHAPE)

    assert kept(in_turn) == 2 * kept(fused)
