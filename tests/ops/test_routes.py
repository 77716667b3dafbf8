"""The way that a call takes: to kernels, through PyTorch's dispatcher, or in plain PyTorch."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from operator_layers import (
    UNET,
    definition,
    layer,
    layer_arguments,
    tensors,
    unet,
    unet_arguments,
    unet_definition,
)
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from stylegan_ops import autograd, dispatch, reference
from stylegan_ops.backends import pytorch
from stylegan_ops.bias_act import bias_act
from stylegan_ops.upfirdn2d import setup_filter, upfirdn2d

REGISTERED = torch.ops.stylegan_ops


@pytest.fixture(autouse=True)
def kernels(cpu_kernels):
    """Kernels for the CPU."""


def gradients(op, *arguments):
    """Values, gradients and gradients of their squared length, R1's."""
    wanted = [t for t in arguments if t.requires_grad]
    y = op(*arguments)
    first = torch.autograd.grad(y.sin().sum(), wanted, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
    return y, *first, *second


def test_ordinary_tensors_go_to_the_kernels_at_once(taken, cpu_kernels):
    x, b, f = layer_arguments()
    layer(x, b, f).sum().backward()
    layer(torch.nn.Parameter(x.detach()), b, f)
    assert taken == [(cpu_kernels, False)] * 6


def test_a_single_addition_goes_to_pytorch(taken):
    x, b, _ = layer_arguments()
    assert torch.equal(bias_act(x, b), x + b[:, None, None])
    assert not taken
    bias_act(x, b, clamp=1)
    bias_act(x, b, gain=2)
    assert len(taken) == 2


def test_operators_get_the_bias_in_the_dtype_of_x(monkeypatch):
    x, b, _ = layer_arguments()
    seen = []
    monkeypatch.setattr(
        autograd, "run", lambda name, way, tensors, options: seen.append(tuple(t.dtype for t in tensors))
    )
    bias_act(x.half(), b, act="relu")
    assert seen == [(torch.float16, torch.float16)]


def test_float64_filters_of_float64_images_keep_their_precision():
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    f = torch.full([1, 1], 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(upfirdn2d(x, f), x / 3, rtol=1e-14, atol=0)
    torch.testing.assert_close(upfirdn2d(x.float(), f), x.float() / 3)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_filters_of_half_precision(half):
    x, f = torch.randn(1, 1, 4, 4), setup_filter([1, 3, 3, 1])  # Multiples of 1 / 64, exact in half precision.
    torch.testing.assert_close(upfirdn2d(x, f.to(half), padding=1), upfirdn2d(x, f, padding=1), rtol=0, atol=0)


class Subclass(torch.Tensor):
    pass


def negative_view(x):
    """X as PyTorch keeps the imaginary part of a conjugate: in memory with the other sign."""
    view = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert view.is_neg()
    return view


def test_tensors_of_two_devices(taken):
    x, b, _ = layer_arguments()
    with pytest.raises(RuntimeError, match="device"):
        bias_act(x, b.to("meta"), act="relu")
    assert taken == [dispatch.PLAIN]


def test_other_dtypes(taken):
    with pytest.raises(NotImplementedError):  # Nor does PyTorch calculate with them.
        bias_act(torch.zeros(2).to(torch.float8_e5m2), act="relu", clamp=1)
    assert taken == [dispatch.PLAIN]


def test_sparse_tensors(taken):
    x = torch.eye(3).to_sparse()
    result = bias_act(x, act="relu")
    torch.testing.assert_close(result.to_dense(), reference.bias_act(torch.eye(3), act="relu"))
    assert taken == [dispatch.PLAIN]


@pytest.mark.parametrize(
    "unusual", [lambda x: x.as_subclass(Subclass), negative_view, lambda x: torch._efficientzerotensor(x.shape)]
)
def test_tensors_that_kernels_cannot_read(taken, unusual):
    x, b = (t.detach() for t in tensors((2, 3, 4, 5), (3,)))
    unusual_x = unusual(x)
    result = bias_act(unusual_x, b, act="swish")
    torch.testing.assert_close(result.as_subclass(torch.Tensor), reference.bias_act(unusual_x + 0, b, act="swish"))
    assert taken == [dispatch.PLAIN]


def test_other_devices_take_plain_pytorch(taken):
    y = layer(*(t.to("meta") for t in layer_arguments()))
    assert y.is_meta
    assert y.shape == (2, 3, 8, 10)
    assert taken == [dispatch.PLAIN] * 2


def test_without_kernels_all_is_plain_pytorch(without_kernels, taken):
    results, expected = (gradients(op, *layer_arguments(torch.float64)) for op in (layer, definition))
    for result, correct in zip(results, expected, strict=True):
        torch.testing.assert_close(result, correct)
    assert taken == [dispatch.PLAIN] * 2


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(func)
        return func(*args, **(kwargs or {}))


def test_dispatch_modes_see_the_operators():
    arguments = layer_arguments()
    traced = make_fx(layer)(*arguments)
    seen = [str(node.target) for node in traced.graph.nodes]
    assert "stylegan_ops.upfirdn2d.default" in seen
    assert "stylegan_ops.bias_act.default" in seen
    torch.testing.assert_close(traced(*arguments), layer(*arguments))
    with Recorder() as recorder:
        torch.testing.assert_close(layer(*arguments), definition(*arguments))
        unet(*unet_arguments())
    names = {str(operator) for operator in recorder.operators}
    assert {f"stylegan_ops.{name}.default" for name in ("upfirdn2d", "bias_act", *UNET)} <= names
    with torch.device("meta"):  # A torch function mode, which does not move what is somewhere already.
        torch.testing.assert_close(layer(*arguments), definition(*arguments))


def test_what_dispatch_modes_see_is_what_is_computed_without():
    """The same kernels, to the last bit, with their gradients."""
    arguments = unet_arguments()
    results = []
    for mode in (nullcontext(), Recorder()):
        with mode:
            y = unet(*arguments)
            results.append((y, *torch.autograd.grad(y.square().sum(), arguments)))
    for result, expected in zip(*results, strict=True):
        assert torch.equal(result, expected)


def test_fake_tensors():
    arguments = layer_arguments()
    with torch._subclasses.FakeTensorMode() as mode:
        y = layer(*(mode.from_tensor(t) for t in arguments))
    assert y.shape == (2, 3, 8, 10)


def check_functional_transforms(op, correct, arguments, index, rtol=None, atol=None):
    """Of the x first, and of the argument of that index."""
    x, *rest = (t.detach() for t in arguments)

    def close(actual, expected):
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)

    batched = torch.func.vmap(lambda x: op(x, *rest))(torch.stack([x, 2 * x]))
    close(batched[1], correct(2 * x, *rest))

    def of(function):
        def total(t):
            given = [x, *rest]
            given[index] = t
            return function(*given).square().sum()

        return total

    t = [x, *rest][index]
    close(torch.func.hessian(of(op))(t), torch.func.hessian(of(correct))(t))
    _, tangent = torch.func.jvp(lambda x: op(x, *rest), (x,), (x,))
    close(tangent, torch.func.jvp(lambda x: correct(x, *rest), (x,), (x,))[1])
    # Also of what the transform leaves alone.
    x.requires_grad_()
    result = torch.func.vmap(lambda scale: scale * op(x, *rest))(torch.tensor([1.0, 2.0]))
    close(result[1], 2 * correct(x, *rest))


def test_functional_transforms():
    check_functional_transforms(layer, definition, layer_arguments(), 1)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functional_transforms_of_unets(monkeypatch):
    # PyTorch's attention has neither second nor forward-mode derivatives.
    monkeypatch.setattr(pytorch, "attention", reference.attention)
    check_functional_transforms(unet, unet_definition, unet_arguments(), 2, rtol=1e-3, atol=1e-3)


def test_forward_mode():
    x, b, f = (t.detach() for t in layer_arguments())
    with forward_ad.dual_level():
        tangents = [forward_ad.unpack_dual(op(forward_ad.make_dual(x, x), b, f)).tangent for op in (layer, definition)]
    torch.testing.assert_close(*tangents)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*jit.trace.* is deprecated")
def test_jit_trace():
    x, b, f = (t.detach() for t in layer_arguments())
    traced = torch.jit.trace(layer, (x, b, f))
    torch.testing.assert_close(traced(2 * x, b, f), definition(2 * x, b, f))


@pytest.mark.parametrize("with_kernels", [True, False])
def test_autocast_leaves_the_dtype_alone(with_kernels, monkeypatch):
    if not with_kernels:
        monkeypatch.setattr(dispatch, "implementation_for", lambda x: None)
    arguments = layer_arguments()
    expected = gradients(definition, *arguments)
    with torch.autocast("cpu", torch.bfloat16):
        results = gradients(layer, *arguments)
    for result, correct in zip(results, expected, strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, correct, rtol=0, atol=1e-5 * correct.abs().max().item())
