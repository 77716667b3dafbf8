"""The names and signatures that embedded sources call, on top of `stylegan_ops`."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from public_names import NAMES
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import stylegan_ops.bias_act
import stylegan_ops.conv2d_resample
import stylegan_ops.filtered_lrelu
import stylegan_ops.fma
import stylegan_ops.upfirdn2d
from torch_utils.ops import (
    bias_act,
    conv2d_gradfix,
    conv2d_resample,
    filtered_lrelu,
    fma,
    grid_sample_gradfix,
    upfirdn2d,
)

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
        (
            filtered_lrelu.filtered_lrelu,
            stylegan_ops.filtered_lrelu.filtered_lrelu,
            (X, F, F, B, 2, 2, [3, 4, 2, 5], 1.5, 0.1, 2.0, True),
        ),
    ],
)
def test_operators_take_an_impl(
    alias: Callable[..., Tensor], ours: Callable[..., Tensor], arguments: tuple[Any, ...]
) -> None:
    expected = ours(*arguments)
    assert expected.std() > 0.1
    for keywords in ({}, {"impl": "ref"}, {"impl": "cuda"}):
        torch.testing.assert_close(alias(*arguments, **keywords), expected, rtol=0, atol=0)
    torch.testing.assert_close(alias(*arguments, "ref"), expected, rtol=0, atol=0)
    for fast in ((*arguments, "fast"), arguments):
        with pytest.raises(ValueError, match="impl has to be 'ref' or 'cuda', not 'fast'"):
            alias(*fast, **({} if len(fast) > len(arguments) else {"impl": "fast"}))


def test_operators_without_an_impl_are_the_same_objects() -> None:
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


def test_setup_filter_goes_to_the_cpu_unless_told_otherwise() -> None:
    with torch.device("meta"):
        f = upfirdn2d.setup_filter([1, 3, 3, 1])
    assert torch.equal(f, stylegan_ops.upfirdn2d.setup_filter([1, 3, 3, 1]))
    assert upfirdn2d.setup_filter([1, 2], device="meta").device.type == "meta"
    one = upfirdn2d.setup_filter(range(9), torch.device("cpu"), False, True, 4, True)
    assert one.tolist() == [2.0 * i for i in reversed(range(9))]


# Every operator, in float64, each argument that it differentiates in turn and together.
DOUBLE = {"dtype": torch.float64}
SMALL = torch.linspace(-1.5, 1.7, 2 * 2 * 5 * 4, **DOUBLE).sin().reshape(2, 2, 5, 4)
BIAS = torch.tensor([0.3, -0.2], **DOUBLE)
WEIGHT = torch.linspace(-1, 1, 2 * 2 * 3 * 3, **DOUBLE).cos().reshape(2, 2, 3, 3)
GRID = torch.linspace(-1.2, 1.13, 2 * 3 * 2 * 2, **DOUBLE).reshape(2, 3, 2, 2)
TAPS = upfirdn2d.setup_filter([1, 3, 3, 1])
ACTIVATIONS = {
    f"bias_act {act}": (lambda x, b, act=act: bias_act.bias_act(x, b, act=act, clamp=1.1), (SMALL, BIAS))
    for act in bias_act.activation_funcs
}
TWICE: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = ACTIVATIONS | {
    "upfirdn2d": (lambda x: upfirdn2d.upfirdn2d(x, TAPS, 2, [1, 2], [2, 1, -1, 3], gain=2), (SMALL,)),
    "filter2d": (lambda x: upfirdn2d.filter2d(x, TAPS), (SMALL,)),
    "upsample2d": (lambda x: upfirdn2d.upsample2d(x, TAPS), (SMALL,)),
    "downsample2d": (lambda x: upfirdn2d.downsample2d(x, TAPS), (SMALL,)),
    "filtered_lrelu": (
        lambda x, b: filtered_lrelu.filtered_lrelu(x, TAPS, TAPS, b, 2, 2, [3, 2, 3, 2], clamp=1.2),
        (SMALL, BIAS),
    ),
    "conv2d_resample up": (
        lambda x, w: conv2d_resample.conv2d_resample(x, w, TAPS, up=2, padding=1, flip_weight=False),
        (SMALL, WEIGHT),
    ),
    "conv2d_resample down": (
        lambda x, w: conv2d_resample.conv2d_resample(x, w, TAPS, down=2, padding=1),
        (SMALL, WEIGHT),
    ),
    "conv2d": (lambda x, w, b: conv2d_gradfix.conv2d(x, w, b, 2, 1, 1, 1), (SMALL, WEIGHT, BIAS)),
    "conv_transpose2d": (
        lambda x, w, b: conv2d_gradfix.conv_transpose2d(x, w, b, 2, 1, 1, 1, 1),
        (SMALL, WEIGHT, BIAS),
    ),
    "fma": (lambda a, b, c: fma.fma(a, b[:, None, None], c), (SMALL, BIAS, SMALL[:1].square())),
    "grid_sample": (grid_sample_gradfix.grid_sample, (SMALL, GRID)),
}


@pytest.mark.parametrize("name", TWICE)
def test_every_operator_is_differentiable_twice(name: str) -> None:
    operator, inputs = TWICE[name]
    inputs = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(operator, inputs)
    assert torch.autograd.gradgradcheck(operator, inputs)


def test_every_operator_is_in_that_list() -> None:
    modules = [names for module, names in NAMES["stylegan3"].items() if module.startswith("torch_utils.ops.")]
    offered = {name for names in modules for name, kind in names.items() if kind != "attribute"}
    assert offered - {"setup_filter", "no_weight_gradients"} == {name.split()[0] for name in TWICE}


def test_keywords_of_convolutions() -> None:
    x, w, b = SMALL, WEIGHT, BIAS
    y = conv2d_gradfix.conv2d(input=x, weight=w[:, :1], bias=b, stride=2, padding=1, dilation=2, groups=2)
    torch.testing.assert_close(y, functional.conv2d(x, w[:, :1], b, 2, 1, 2, 2))
    y = conv2d_gradfix.conv_transpose2d(
        input=x, weight=w[:, :1], bias=b, stride=3, padding=1, output_padding=2, groups=2, dilation=2
    )
    torch.testing.assert_close(y, functional.conv_transpose2d(x, w[:, :1], b, 3, 1, 2, 2, 2))


class WantedGradients(TorchDispatchMode):
    """Gradients (input, weight, bias) that convolutions were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(list(args[-1]))
        return func(*args, **(kwargs or {}))


def test_gradients_of_weights_are_not_computed_where_only_images_are_asked_for() -> None:
    x, w = SMALL.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    assert not conv2d_gradfix.weight_gradients_disabled
    with conv2d_gradfix.no_weight_gradients(), conv2d_gradfix.no_weight_gradients(disable=False):
        assert conv2d_gradfix.weight_gradients_disabled
        y = conv2d_gradfix.conv2d(x, w)
        with WantedGradients() as wanted:
            (dx,) = torch.autograd.grad([y.square().sum()], [x], create_graph=True, only_inputs=True)
    assert wanted.masks == [[True, False, False]]
    assert not conv2d_gradfix.weight_gradients_disabled
    dx.square().sum().backward()  # as R1 does
    assert w.grad is not None and w.grad.abs().max() > 0


@pytest.mark.parametrize(("image", "grid"), [(True, False), (False, True), (True, True)])
def test_derivatives_of_grid_sample_do_not_end(image: bool, grid: bool) -> None:
    inputs = (SMALL.clone().requires_grad_(image), GRID.clone().requires_grad_(grid))

    def gradients(x: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        wanted = tuple(tensor for tensor in (x, places) if tensor.requires_grad)
        y = grid_sample_gradfix.grid_sample(x, places).pow(3).sum()
        return torch.autograd.grad(y, wanted, create_graph=True)

    expected = functional.grid_sample(*inputs, align_corners=False).pow(3).sum()
    wanted = tuple(tensor for tensor in inputs if tensor.requires_grad)
    for ours, theirs in zip(gradients(*inputs), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradgradcheck(gradients, inputs)


def test_second_derivative_of_grid_sample_needs_nothing_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = SMALL.clone().requires_grad_()
    y = grid_sample_gradfix.grid_sample(x, GRID)
    names = set()
    node: Any = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0].grad_fn
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.add(node.name())
            waiting += [following for following, _ in node.next_functions]
    assert "_GridSampleGradientBackward" in names
    assert not any("GridSampler" in name for name in names)


def test_grid_sample_is_bilinear_with_zeros_outside() -> None:
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    # Pixel centers lie at -0.5 and 0.5, the border of the image at -1 and 1.
    grid = torch.tensor([[[[-0.5, -0.5], [0.5, 0.5], [0.0, 0.0], [0.0, -0.5], [1.0, 0.5], [3.0, 0.0]]]])
    sampled = grid_sample_gradfix.grid_sample(x, grid)
    torch.testing.assert_close(sampled, torch.tensor([[[[1.0, 7.0, 4.0, 2.0, 3.5, 0.0]]]]))
