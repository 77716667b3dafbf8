from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from stylegan_ops import reference
from stylegan_ops.filtered_lrelu import filtered_lrelu
from stylegan_ops.upfirdn2d import setup_filter

GOLDEN = "sg3_ops"
GOLDEN_OPS = ("filtered_lrelu",)


def test_golden(golden_case, assert_golden):
    assert_golden(golden_case, filtered_lrelu)


def test_same_as_the_definition():
    torch.manual_seed(0)
    x, b = torch.randn(2, 3, 5, 6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    fu, fd = torch.randn(4, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    y = reference.upfirdn2d(x + b[:, None, None], fu, up=3, padding=[2, -1, 3, 4], flip_filter=True, gain=9)
    y = (functional.leaky_relu(y, 0.3) * 1.5).clamp(-2, 2)
    y = reference.upfirdn2d(y, fd, down=2, flip_filter=True)
    result = filtered_lrelu(x, fu, fd, b, 3, 2, [2, -1, 3, 4], 1.5, 0.3, 2, flip_filter=True)
    assert (y.abs() > 1).any()
    torch.testing.assert_close(result, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clamp", [None, 0.8])
def test_derivatives(clamp):
    torch.manual_seed(1)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, dtype=torch.float64, requires_grad=True)
    fu, fd = setup_filter([1, 3, 3, 1]), setup_filter([1, 2, 1])

    def op(x, b):
        return filtered_lrelu(x, fu, fd, b, up=2, down=2, padding=[2, 1, 2, 1], clamp=clamp)

    assert torch.autograd.gradcheck(op, (x, b), fast_mode=True)
    assert torch.autograd.gradgradcheck(op, (x, b), fast_mode=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(2, 8, 8)}, ValueError, r"\[N, C, H, W\]"),
        ({"b": torch.zeros(3)}, ValueError, r"b must have shape \[2\]"),
        ({"up": [2, 1]}, ValueError, "the same along both axes"),
        ({"down": 0}, ValueError, "down must be at least 1"),
        ({"clamp": -1}, ValueError, "clamp must be None or at least 0"),
        ({"fu": [1.0]}, TypeError, "f must be a tensor"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        filtered_lrelu(**{"x": torch.zeros(1, 2, 8, 8), **arguments})
