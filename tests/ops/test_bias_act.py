from __future__ import annotations

import math

import pytest
import torch

from stylegan_ops import reference
from stylegan_ops.bias_act import ACTIVATIONS, bias_act

GOLDEN = "bias_act"


def test_golden_reference(golden_case, assert_golden):
    assert_golden(golden_case, reference.bias_act)


def test_leaky_relu_by_hand():
    x = torch.tensor([[-2.0, 1.0], [0.5, 40.0]])
    y = bias_act(x, torch.tensor([1.0, 2.0]), act="lrelu", alpha=0.1, gain=2, clamp=10)
    torch.testing.assert_close(y, torch.tensor([[-0.2, 6.0], [3.0, 10.0]]))


def test_default_gains_keep_variance():
    for act in ("relu", "lrelu", "swish"):
        assert ACTIVATIONS[act].gain == math.sqrt(2)
    for act in ACTIVATIONS.keys() - {"relu", "lrelu", "swish"}:
        assert ACTIVATIONS[act].gain == 1


def test_empty_batch():
    x = torch.zeros(0, 3, 2, requires_grad=True)
    b = torch.zeros(3, requires_grad=True)
    y = bias_act(x, b, act="lrelu")
    assert y.shape == (0, 3, 2)
    y.sum().backward()
    assert torch.equal(b.grad, torch.zeros(3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "floating-point tensor, not torch.int64"),
        ({"x": [1.0]}, TypeError, "floating-point tensor, not list"),
        ({"act": "gelu"}, ValueError, "linear, relu, .*not 'gelu'"),
        ({"clamp": -1}, ValueError, "clamp must be None or at least 0, not -1"),
        ({"clamp": math.nan}, ValueError, "clamp"),
        ({"b": torch.zeros(3), "dim": 2}, ValueError, "one of the 2 dimensions of x, not 2"),
        ({"b": torch.zeros(2)}, ValueError, r"b must have shape \[3\]"),
        ({"b": torch.zeros(1, 3)}, ValueError, r"not \[1, 3\]"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        bias_act(**{"x": torch.zeros(2, 3), **arguments})
