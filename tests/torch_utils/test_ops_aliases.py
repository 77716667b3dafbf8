"""The names and signatures that embedded sources call, on top of `stylegan_ops`."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import stylegan_ops.bias_act
import stylegan_ops.conv2d_resample
import stylegan_ops.fma
import stylegan_ops.upfirdn2d
from torch_utils.ops import bias_act, conv2d_gradfix, conv2d_resample, fma, grid_sample_gradfix, upfirdn2d

X = torch.linspace(-3, 3, 2 * 2 * 6 * 4).reshape(2, 2, 6, 4)
F = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
B = torch.tensor([0.5, -0.25])


@pytest.mark.parametrize(
    ("alias", "ours", "arguments"),
    [
        (bias_act.bias_act, stylegan_ops.bias_act.bias_act, (X, B, 1, "lrelu", 0.1, 2.0, 1.5)),
        (upfirdn2d.upfirdn2d, stylegan_ops.upfirdn2d.upfirdn2d, (X, F, [2, 1], [1, 2], [1, 0, 2, 3], True, 3.0)),
        (upfirdn2d.filter2d, stylegan_ops.upfirdn2d.filter2d, (X, F, 1, True, 3.0)),
        (upfirdn2d.upsample2d, stylegan_ops.upfirdn2d.upsample2d, (X, F, 2, 1, True, 3.0)),
        (upfirdn2d.downsample2d, stylegan_ops.upfirdn2d.downsample2d, (X, F, 2, 1, True, 3.0)),
    ],
)
def test_operators_take_an_impl(
    alias: Callable[..., Tensor], ours: Callable[..., Tensor], arguments: tuple[Any, ...]
) -> None:
    expected = ours(*arguments)
    assert expected.std() > 0.1
    for keywords in ({}, {"impl": "ref"}, {"impl": "cuda"}):
        torch.testing.assert_close(alias(*arguments, **keywords), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="impl has to be 'ref' or 'cuda', not 'fast'"):
        alias(*arguments, impl="fast")


def test_operators_without_an_impl_are_the_same_objects() -> None:
    assert upfirdn2d.setup_filter is stylegan_ops.upfirdn2d.setup_filter
    assert conv2d_resample.conv2d_resample is stylegan_ops.conv2d_resample.conv2d_resample
    assert fma.fma is stylegan_ops.fma.fma


def test_default_gains() -> None:
    gains = {name: spec.def_gain for name, spec in bias_act.activation_funcs.items()}
    rectifiers = {"relu", "lrelu", "swish"}
    others = {"linear", "tanh", "sigmoid", "elu", "selu", "softplus"}
    assert gains == dict.fromkeys(others, 1.0) | dict.fromkeys(rectifiers, pytest.approx(math.sqrt(2), rel=1e-15))
    assert bias_act.activation_funcs["lrelu"].def_alpha == 0.2


def test_activation_functions_are_those_of_bias_act() -> None:
    x = torch.tensor([-2.0, -0.5, 0.0, 1.5], dtype=torch.float64)
    for name, spec in bias_act.activation_funcs.items():
        y = bias_act.bias_act(x[None], act=name)[0]
        torch.testing.assert_close(spec.func(x, alpha=spec.def_alpha) * spec.def_gain, y)
        torch.testing.assert_close(spec.func(x) * spec.def_gain, y)
    assert bias_act.activation_funcs["lrelu"].func(x, alpha=0.5).tolist() == [-1, -0.25, 0, 1.5]


@pytest.mark.parametrize("module", [conv2d_gradfix, grid_sample_gradfix])
def test_modules_can_be_enabled(module: ModuleType) -> None:
    assert module.enabled is False


def test_convolutions_are_differentiable_twice() -> None:
    x, w = torch.randn(1, 2, 4, 4, dtype=torch.float64), torch.randn(2, 2, 3, 3, dtype=torch.float64)
    inputs = (x.requires_grad_(), w.requires_grad_())
    with conv2d_gradfix.no_weight_gradients(), conv2d_gradfix.no_weight_gradients(disable=False):
        torch.autograd.gradgradcheck(lambda x, w: conv2d_gradfix.conv2d(input=x, weight=w, padding=1), inputs)
        torch.autograd.gradgradcheck(
            lambda x, w: conv2d_gradfix.conv_transpose2d(input=x, weight=w, stride=2, output_padding=1), inputs
        )


def test_grid_sample_is_bilinear_with_zeros_outside() -> None:
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    # Pixel centres lie at -0.5 and 0.5, the border of the image at -1 and 1.
    grid = torch.tensor([[[[-0.5, -0.5], [0.5, 0.5], [0.0, 0.0], [0.0, -0.5], [1.0, 0.5], [3.0, 0.0]]]])
    sampled = grid_sample_gradfix.grid_sample(x, grid)
    torch.testing.assert_close(sampled, torch.tensor([[[[1.0, 7.0, 4.0, 2.0, 3.5, 0.0]]]]))
