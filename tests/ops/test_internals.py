"""PyTorch's private names: with all of them, and with one missing, as in a version of PyTorch to come."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from operator_layers import (
    definition,
    layer,
    layer_arguments,
    tensors,
    unet,
    unet_arguments,
    unet_definition,
)
from torch.autograd import forward_ad

from stylegan_ops import dispatch, internals, reference
from stylegan_ops.bias_act import bias_act

NAMES = [
    "torch._C._are_functorch_transforms_active",
    "torch._C._is_tracing",
    "torch._C._has_storage",
    "torch._C._len_torch_dispatch_stack",
    "torch._C._len_torch_function_stack",
    "torch.autograd.forward_ad._current_level",
]


def test_this_pytorch_has_all_private_names():
    """Else calls would be slower here without anybody noticing."""
    assert internals.hooks is not internals.PUBLIC


@pytest.mark.parametrize("name", NAMES)
def test_one_name_missing_is_enough(name, monkeypatch):
    owner, _, attribute = name.rpartition(".")
    monkeypatch.delattr(f"{owner}.{attribute}")
    assert internals.choose() is internals.PUBLIC


def test_import_where_private_names_are_missing(monkeypatch):
    """A second copy of the module, with nothing of the first."""
    for name in ("_has_storage", "_len_torch_function_stack"):
        monkeypatch.delattr(torch._C, name)
    spec = importlib.util.spec_from_file_location("second_internals", internals.__file__)
    second = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, second)
    spec.loader.exec_module(second)
    assert second.hooks is second.PUBLIC


# --- the documented interface alone, where something looks inside


@pytest.fixture
def without_private_names(cpu_kernels, monkeypatch):
    monkeypatch.setattr(internals, "hooks", internals.PUBLIC)


@pytest.mark.usefixtures("without_private_names")
class TestPublicHooks:
    def test_ordinary_tensors_are_registered_operators(self, taken):
        x, b, f = layer_arguments()
        layer(x, b, f).sum().backward()
        assert taken == [dispatch.REGISTERED] * 2
        torch.testing.assert_close(layer(x, b, f), definition(x, b, f))

    def test_functional_transforms(self, taken):
        x, b, f = (t.detach() for t in layer_arguments())
        batched = torch.func.vmap(lambda x: layer(x, b, f))(torch.stack([x, 2 * x]))
        torch.testing.assert_close(batched[1], definition(2 * x, b, f))
        hessian = torch.func.hessian(lambda b: layer(x, b, f).sum())(b)
        torch.testing.assert_close(hessian, torch.func.hessian(lambda b: definition(x, b, f).sum())(b))
        slopes, expected = (
            torch.func.vmap(torch.func.grad(lambda x, op=op: op(x[None], b, f).sum()))(x) for op in (layer, definition)
        )
        torch.testing.assert_close(slopes, expected)
        _, tangent = torch.func.jvp(lambda x: layer(x, b, f), (x,), (x,))
        torch.testing.assert_close(tangent, torch.func.jvp(lambda x: definition(x, b, f), (x,), (x,))[1])

    def test_forward_mode(self):
        x, b, f = (t.detach() for t in layer_arguments())
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, x)
            tangents = [forward_ad.unpack_dual(op(dual, b, f)).tangent for op in (layer, definition)]
        torch.testing.assert_close(*tangents)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*jit.trace.* is deprecated")
    def test_jit_trace(self):
        x, b, f = (t.detach() for t in layer_arguments())
        traced = torch.jit.trace(layer, (x, b, f))
        torch.testing.assert_close(traced(2 * x, b, f), definition(2 * x, b, f))

    def test_batched_gradients(self):
        x, b, f = layer_arguments()
        r = torch.randn(3, 2, 3, 8, 10)
        results = [torch.autograd.grad(op(x, b, f), (x, b), r, is_grads_batched=True) for op in (layer, definition)]
        for result, expected in zip(*results, strict=True):
            torch.testing.assert_close(result, expected)

    def test_unusual_tensors(self):
        x, b = (t.detach() for t in tensors((2, 3, 4, 5), (3,)))
        expected = reference.bias_act(x, b, act="swish")
        torch.testing.assert_close(bias_act(torch.nn.Parameter(x), b, act="swish"), expected)
        negative = torch.complex(torch.zeros_like(x), -x).conj().imag
        assert negative.is_neg()
        torch.testing.assert_close(bias_act(negative, b, act="swish"), reference.bias_act(x, b, act="swish"))
        zeros = torch._efficientzerotensor(x.shape)
        torch.testing.assert_close(bias_act(zeros, b, act="swish"), reference.bias_act(zeros + 0, b, act="swish"))
        sparse = bias_act(torch.eye(3).to_sparse(), act="relu")
        torch.testing.assert_close(sparse.to_dense(), reference.bias_act(torch.eye(3), act="relu"))

    def test_unets(self):
        arguments = unet_arguments()
        results = [(y := op(*arguments), *torch.autograd.grad(y.sum(), arguments)) for op in (unet, unet_definition)]
        for result, expected in zip(*results, strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
