"""Derivatives of the raw operators: of any order, of batches of gradients, and in a whole network."""

from __future__ import annotations

import copy

import pytest
import torch
from operator_layers import (
    definition,
    layer,
    layer_arguments,
    small_generator,
    unet,
    unet_arguments,
    unet_definition,
)

from stylegan_ops import arguments, dispatch, reference
from stylegan_ops.backends import pytorch
from stylegan_ops.backends.packing import ACTS
from stylegan_ops.bias_act import bias_act
from stylegan_ops.samples import sample_inputs

REGISTERED = torch.ops.stylegan_ops


@pytest.fixture(autouse=True)
def kernels(cpu_kernels):
    """Kernels for the CPU."""


# --- against finite differences, which know nothing of autograd


@pytest.mark.parametrize("act", ACTS)
def test_registered_derivatives(act):
    torch.manual_seed(0)
    x, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 2, 3), (2,)))

    def op(x, b):
        return REGISTERED.bias_act(x, b, 1, ACTS.index(act), 0.2, 1.3, 2.0)

    assert torch.autograd.gradcheck(op, (x, b), fast_mode=True)
    assert torch.autograd.gradgradcheck(op, (x, b), fast_mode=True)

    def slope(x, b):
        return torch.autograd.grad(op(x, b).square().sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(slope, (x, b), fast_mode=True)


SMALL = {
    "upfirdn2d": ((2, 2, 4, 5),),
    "conv3x3": ((2, 2, 3, 4), (3, 2, 3, 3), (3,)),
    "conv1x1": ((2, 2, 3, 4), (3, 2, 1, 1), (3,)),
    "attention": ((2, 1, 3, 3, 4),),
    "group_norm_silu": ((2, 4, 3, 2), (4,), (4,), (2, 4), (2, 4), (2, 4)),
    "norm_conv3x3": ((2, 4, 3, 2), (3, 4, 3, 3), (3,), (4,), (4,), (2, 4), (2, 4), (2, 4)),
}
REST = {
    "upfirdn2d": (torch.tensor([1.0, 2.0, -4.0]), 2, 1, 1, 3, 2, 3, 1, 1, False, 1.5),
    "group_norm_silu": (2, 1e-2),
    "norm_conv3x3": (torch.tensor([True, False]).repeat(24).reshape(2, 4, 3, 2), 2, 1e-2, 1.5),
}


@pytest.mark.parametrize("name", SMALL)
def test_registered_derivatives_of_double_precision(name, monkeypatch):
    """No kernel takes these but that of upfirdn2d: what is written out in plain PyTorch is right as well."""
    monkeypatch.setattr(pytorch, "attention", reference.attention)
    torch.manual_seed(0)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in SMALL[name]]

    def op(*tensors):
        result = getattr(REGISTERED, name)(*tensors, *REST.get(name, ()))
        return result[0] if isinstance(result, tuple) else result

    assert torch.autograd.gradcheck(op, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(op, leaves, fast_mode=True)


# --- against the definitions


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("act", ["tanh", "sigmoid", "softplus", "swish"])
def test_fourth_derivative(act, registered):
    def registered_bias_act(x):
        return REGISTERED.bias_act(x, None, 0, ACTS.index(act), 0.0, 1.0, -1.0)

    def derivatives(op):
        x = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
        y = op(x)
        for _ in range(4):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y

    public = registered_bias_act if registered else lambda x: bias_act(x, act=act, gain=1)
    torch.testing.assert_close(derivatives(public), derivatives(lambda x: reference.bias_act(x, act=act, gain=1)))


def test_adjoint():
    """<r, A x> = <A* r, x>, in shapes of which every number differs."""
    torch.manual_seed(0)
    x, f = torch.randn(2, 3, 7, 5, dtype=torch.float64), torch.randn(4, 3)
    options = (2, 3, 5, 4, 7, 11, 6, 13, False, 1.5)
    y = pytorch.upfirdn2d(x, f, *options)
    r = torch.randn_like(y)
    back = pytorch.upfirdn2d(r, f, *arguments.adjoint(x.shape, y.shape, f.shape, *options))
    assert back.shape == x.shape
    torch.testing.assert_close((r * y).sum(), (back * x).sum())


def test_registered_upfirdn2d_refuses_the_derivative_in_the_filter():
    x, f = torch.randn(1, 1, 4, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    y = REGISTERED.upfirdn2d(x, f, 1, 1, 1, 1, 2, 1, 2, 1, False, 1.0)
    with pytest.raises(NotImplementedError, match="no derivative in f"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["group_norm_silu", "norm_conv3x3"])
def test_statistics_have_no_gradient(name):
    """They are returned for the backward pass only."""
    sample = sample_inputs(name)[-1].to(torch.float32).with_leaves()
    y, statistics = getattr(REGISTERED, name)(*sample.tensors, *sample.options)
    assert y.requires_grad
    assert not statistics.requires_grad


@pytest.mark.parametrize(
    ("op", "correct", "make"), [(layer, definition, layer_arguments), (unet, unet_definition, unet_arguments)]
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_gradients(op, correct, make, monkeypatch):
    arguments = make()
    x, leaves = arguments[0], [t for t in arguments if t.requires_grad]
    r = torch.randn(3, *correct(*arguments).shape)

    def first(op):
        return torch.autograd.grad(op(*arguments), leaves, r, is_grads_batched=True)

    def second(op):
        (slope,) = torch.autograd.grad(op(*arguments).sum(), x, create_graph=True)
        return torch.autograd.grad(slope, leaves, torch.ones(3, *slope.shape), is_grads_batched=True)

    for derivative in (first, second):
        for result, expected in zip(derivative(op), derivative(correct), strict=True):
            scale = expected.abs().max().item()
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * scale)


def test_in_place_changes_are_noticed():
    x = torch.randn(2, 3, requires_grad=True)
    doubled = 2 * x
    y = bias_act(doubled, act="lrelu", clamp=1)
    doubled.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# --- a whole network


def second_order_gradients(G, z, direction):
    """Of the path-length regularizer's kind: how the squared slope of the image in ws changes with the weights."""
    ws = G.mapping(z)
    image = G.synthesis(ws, noise_mode="const")
    (slope,) = torch.autograd.grad((image * direction).sum(), ws, create_graph=True)
    slope.square().sum().backward()
    return image.detach(), slope.detach(), {name: p.grad for name, p in G.named_parameters()}


def test_second_order_of_a_generator_is_that_of_the_reference(monkeypatch, taken, cpu_kernels):
    G = small_generator().double()
    for name, buffer in G.named_buffers():
        if name.endswith("resample_filter"):
            buffer.data = buffer.data.float()  # So that the kernels take it.
    for parameter in G.parameters():
        if parameter.ndim < 2:
            torch.nn.init.normal_(parameter)
    z, direction = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    H = copy.deepcopy(G)
    image, slope, grads = second_order_gradients(G, z, direction)
    assert taken.count((cpu_kernels, False)) > 30
    monkeypatch.setattr(dispatch, "implementation_for", lambda x: None)
    expected_image, expected_slope, expected_grads = second_order_gradients(H, z, direction)
    torch.testing.assert_close(image, expected_image, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-10, atol=1e-10)
    for name, expected in expected_grads.items():
        if expected is None:
            assert grads[name] is None, name
        else:
            result = torch.zeros_like(expected) if grads[name] is None else grads[name]
            torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item(), msg=name)
