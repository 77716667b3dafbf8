from __future__ import annotations

import pytest
import torch

from stylegan_ops import reference
from stylegan_ops.backends import pytorch
from stylegan_ops.backends.packing import ACTS

# With both sides of every kink and threshold, and the kinks themselves.
X = torch.tensor([-30.0, -3, -0.5, 0, 0.25, 2, 19.875, 20, 20.125, 40], dtype=torch.float64)


def by_autograd(x, b, act, clamp, dy, ddx):
    """First and second derivative of the reference, with respect to x."""
    x = x.clone().requires_grad_()
    y = reference.bias_act(x, b, 1, act, 0.3, -1.5, clamp)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    (d2x,) = torch.autograd.grad(dx, x, ddx, allow_unused=True) if dx.requires_grad else (None,)
    return dx.detach(), torch.zeros_like(x) if d2x is None else d2x


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("clamp", [None, 1.2, 0.0])
@pytest.mark.parametrize("act", ACTS)
def test_derivatives_are_those_of_the_reference(act, clamp, has_bias):
    torch.manual_seed(0)
    x = torch.stack([X, X + 0.125], dim=1)
    b = torch.tensor([0.0, -0.125], dtype=torch.float64) if has_bias else None
    dy, ddx = torch.randn(2, *x.shape, dtype=torch.float64)
    options = (1, ACTS.index(act), 0.3, -1.5, -1.0 if clamp is None else clamp)
    first, second = by_autograd(x, b, act, clamp, dy, ddx)
    torch.testing.assert_close(pytorch.bias_act_grad(dy, x, b, *options), first, rtol=1e-12, atol=1e-14)
    # Above its threshold PyTorch's softplus has the slope of a line, but still the curvature of the softplus.
    torch.testing.assert_close(pytorch.bias_act_grad2(ddx, dy, x, b, *options), second, rtol=1e-12, atol=2e-8)


@pytest.mark.parametrize("act", ACTS)
def test_the_clamp_lets_pass_what_is_equal_to_it(act):
    x = torch.tensor([[1.5]], dtype=torch.float64)
    limit = reference.bias_act(x, act=act, alpha=0.3, gain=-1.5).abs().item()
    expected, _ = by_autograd(x, None, act, limit, x, x)
    assert expected.item() != 0
    result = pytorch.bias_act_grad(x, x, None, 1, ACTS.index(act), 0.3, -1.5, limit)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("act", ACTS)
def test_derivatives_do_not_overflow(act):
    x = torch.tensor([[-1e4, -100.0, 100.0, 1e4]], requires_grad=True)
    one = torch.ones_like(x)
    for result in (
        pytorch.bias_act_grad(one, x, None, 0, ACTS.index(act), 0.3, 1.0, -1.0),
        pytorch.bias_act_grad2(one, one, x, None, 0, ACTS.index(act), 0.3, 1.0, -1.0),
    ):
        assert result.isfinite().all()
        if result.requires_grad:
            assert torch.autograd.grad(result.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("act", ACTS)
def test_derivatives_have_the_dtype_of_x(act, dtype):
    x = torch.ones(2, 3, dtype=dtype)
    options = (1, ACTS.index(act), 0.3, 1.5, 1.0)
    assert pytorch.bias_act_grad(x, x, None, *options).dtype == dtype
    assert pytorch.bias_act_grad2(x, x, x, None, *options).dtype == dtype
