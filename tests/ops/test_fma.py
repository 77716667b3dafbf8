from __future__ import annotations

import pytest
import torch

from stylegan_ops.fma import fma

SHAPES = [
    ((2, 3, 4), (2, 3, 4), (2, 3, 4)),
    ((2, 3, 4), (2, 3, 1), (3, 1)),
    ((2, 1, 4), (3, 1), (4,)),
    ((), (2,), (3, 1)),
]


@pytest.mark.parametrize("shapes", SHAPES)
def test_value_and_derivatives(shapes):
    torch.manual_seed(0)
    a, b, c = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    torch.testing.assert_close(fma(a, b, c), a * b + c)
    assert torch.autograd.gradcheck(fma, (a, b, c))
    assert torch.autograd.gradgradcheck(fma, (a, b, c))
