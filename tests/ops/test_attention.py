"""Attention of queries, keys and values channel by channel, against PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan_ops import dispatch
from stylegan_ops.attention import attention


@pytest.fixture(autouse=True)
def kernels(kernels_named, monkeypatch):
    kernels = kernels_named("cpu")
    monkeypatch.setattr(dispatch, "implementation_for", lambda x: kernels)


def is_ours(y):
    return type(y.grad_fn).__name__ == "AttentionBackward"


def definition(qkv):
    query, key, value = qkv.unbind(3)
    weights = (query.transpose(2, 3) @ key / qkv.shape[2] ** 0.5).softmax(dim=3)
    return value @ weights.transpose(2, 3)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 2),
    eights=st.integers(1, 5),
    panels=st.integers(1, 4),
    spread=st.sampled_from([0.1, 1.0, 6.0]),
    seed=st.integers(0, 2**32),
)
def test_random_shapes(batch, heads, eights, panels, spread, seed):
    torch.manual_seed(seed)
    qkv = (spread * torch.randn(batch, heads, 8 * eights, 3, 32 * panels)).requires_grad_()
    y = attention(qkv)
    assert is_ours(y)
    dy = torch.randn_like(y)
    (result,) = torch.autograd.grad(y, qkv, dy)
    double = qkv.detach().double().requires_grad_()
    expected = definition(double)
    (correct,) = torch.autograd.grad(expected, double, dy.double())
    # Large products are rounded before their exponentials are taken.
    for actual, wanted in ((y, expected), (result, correct)):
        assert actual.shape == wanted.shape
        error = (actual.double() - wanted).abs().max() / wanted.abs().max()
        assert error < (1e-5 if spread <= 1 else 1e-4)


@pytest.mark.parametrize("shape", [(2, 1, 12, 3, 32), (2, 1, 16, 3, 16), (0, 1, 16, 3, 32), (1, 1, 136, 3, 32)])
def test_other_shapes_are_left_to_pytorch(shape):
    torch.manual_seed(0)
    qkv = torch.randn(shape, requires_grad=True)
    y = attention(qkv)
    assert not is_ours(y)
    torch.testing.assert_close(y, definition(qkv))


def test_other_tensors_are_left_to_pytorch():
    torch.manual_seed(0)
    qkv = torch.randn(2, 2, 8, 3, 32, requires_grad=True)
    assert is_ours(attention(qkv))
    assert not is_ours(attention(qkv.transpose(0, 1)))
    assert attention(qkv.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_ours(attention(qkv))
    double = torch.randn(1, 1, 8, 3, 32, dtype=torch.float64)
    torch.testing.assert_close(attention(double), definition(double))
    assert torch.func.vmap(attention)(torch.randn(3, 1, 1, 8, 3, 32)).shape == (3, 1, 1, 8, 32)


def test_one_key_much_larger_than_all_others_wins():
    qkv = torch.zeros(1, 1, 8, 3, 64)
    qkv[0, 0, :, 0] = 100.0
    qkv[0, 0, :, 1, 5] = 100.0
    qkv[0, 0, :, 2] = torch.arange(64.0)
    assert torch.equal(attention(qkv), torch.full((1, 1, 8, 64), 5.0))


def test_second_derivatives():
    torch.manual_seed(0)
    qkv = torch.randn(1, 2, 8, 3, 32)

    def penalty(qkv, function):
        qkv = qkv.requires_grad_()
        (d,) = torch.autograd.grad(function(qkv).square().sum(), qkv, create_graph=True)
        return torch.autograd.grad(d.square().sum(), qkv)[0]

    correct = penalty(qkv.double(), definition)
    torch.testing.assert_close(penalty(qkv, attention).double(), correct, rtol=1e-3, atol=1e-3)


def test_gradients_that_are_not_contiguous_and_threads():
    torch.manual_seed(0)
    qkv = torch.randn(5, 1, 16, 3, 128, requires_grad=True)
    dy = torch.randn(5, 1, 128, 16).transpose(2, 3)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = attention(qkv)
            results.append((y, *torch.autograd.grad(y, qkv, dy)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    torch.testing.assert_close(results[0][1], torch.autograd.grad(definition(qkv), qkv, dy)[0], rtol=1e-4, atol=1e-5)
