"""Normalization, scale and shift, and SiLU in one pass, against plain PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan_ops import dispatch
from stylegan_ops.backends import cpu
from stylegan_ops.backends.pytorch import silu_of_group_norm
from stylegan_ops.group_norm_silu import group_norm_silu


@pytest.fixture(autouse=True)
def kernels(kernels_named, monkeypatch):
    """The kernels, which serve tensors of any size here."""
    kernels = kernels_named("cpu")
    monkeypatch.setattr(dispatch, "implementation_for", lambda x: kernels)
    monkeypatch.setattr(cpu, "MIN_PIXELS", 1)


def is_ours(y):
    return type(y.grad_fn).__name__ == "GroupNormSiluBackward"


def inputs(shape, which=("before", "scale", "shift"), dtype=torch.float32, mean=1.0):
    """x, weight, bias and those of the other three, all of which require gradients."""
    n, c = shape[:2]
    tensors = {"x": 2 * torch.randn(shape) + mean, "weight": torch.randn(c) + 1, "bias": torch.randn(c)}
    tensors |= {name: torch.randn(n, c) for name in which}
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in tensors.items()}


def evaluate(function, tensors, dy, groups, eps=1e-5):
    """The result, and all gradients."""
    y = function(**tensors, groups=groups, eps=eps)
    return y, torch.autograd.grad(y, tuple(tensors.values()), dy)


def definition(x, groups, eps, weight, bias, before=None, scale=None, shift=None):
    return silu_of_group_norm(x, weight, bias, before, scale, shift, groups, eps)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    groups=st.integers(1, 4),
    channels=st.integers(1, 5),
    pixels=st.lists(st.integers(1, 40), min_size=0, max_size=2),
    which=st.sets(st.sampled_from(["before", "scale", "shift"])),
    mean=st.sampled_from([0.0, 1.0, -30.0]),
    seed=st.integers(0, 2**32),
)
def test_random_shapes(batch, groups, channels, pixels, which, mean, seed):
    torch.manual_seed(seed)
    tensors = inputs((batch, groups * channels, *pixels), sorted(which), mean=mean)
    dy = torch.randn_like(tensors["x"])
    doubles = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
    y, grads = evaluate(group_norm_silu, tensors, dy, groups, eps=1e-2)
    assert is_ours(y) == (batch > 0)
    expected, expected_grads = evaluate(definition, doubles, dy.double(), groups, eps=1e-2)
    for result, correct in zip((y, *grads), (expected, *expected_grads), strict=True):
        assert result.dtype == torch.float32
        assert result.shape == correct.shape
        if result.numel():
            # Gradients may cancel, so nothing is measured by less than one; and x is rounded where its mean is large.
            scale = correct.abs().max().clamp(min=1) * (1 + abs(mean) / 2)
            assert ((result.double() - correct).abs().max() / scale).item() <= 1e-5


def test_far_from_zero_the_slope_is_that_of_silu():
    """SiLU at values that its exponential does not reach."""
    z = torch.tensor([-1e4, -200.0, -90.0, -87.0, -50.0, -5.0, 0.0, 5.0, 50.0, 87.0, 90.0, 1e4]).reshape(1, 12, 1)
    x = torch.tensor([-1.0, 1.0]).expand(1, 12, 2).contiguous()  # Normalized, it is itself.
    tensors = {"x": x, "weight": z[0, :, 0] / 2, "bias": z[0, :, 0] / 2}
    tensors = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    dy = torch.tensor([0.0, 1.0]).expand(1, 12, 2)
    y, grads = evaluate(group_norm_silu, tensors, dy, 12, eps=0.0)
    assert is_ours(y)
    torch.testing.assert_close(y[..., 1:], torch.nn.functional.silu(z), atol=1e-30, rtol=1e-6)
    slope = torch.autograd.functional.jvp(torch.nn.functional.silu, z, torch.ones_like(z))[1]
    torch.testing.assert_close(grads[2], slope.flatten(), atol=1e-30, rtol=1e-5)


@pytest.mark.parametrize("which", [(), ("before",), ("scale", "shift")])
def test_derivatives_in_float64(which):
    torch.manual_seed(0)
    tensors = inputs((2, 4, 3, 2), which, torch.float64)

    def op(*values):
        return group_norm_silu(**dict(zip(tensors, values, strict=True)), groups=2)

    assert torch.autograd.gradcheck(op, tuple(tensors.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(op, tuple(tensors.values()), fast_mode=True)


def test_second_derivatives_of_the_kernels():
    torch.manual_seed(0)
    tensors = inputs((2, 4, 3, 5))
    doubles = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
    r, s = torch.randn_like(tensors["x"]), torch.randn_like(tensors["x"])

    def second(function, tensors, r, s):
        r.requires_grad_()
        y = function(**tensors, groups=2, eps=1e-5)
        (dx,) = torch.autograd.grad(y, tensors["x"], r, create_graph=True)
        return y, torch.autograd.grad(dx, (*tensors.values(), r), s)

    y, results = second(group_norm_silu, tensors, r, s)
    assert is_ours(y)
    _, expected = second(definition, doubles, r.detach().double(), s.double())
    for result, correct in zip(results, expected, strict=True):
        torch.testing.assert_close(result.double(), correct, rtol=1e-4, atol=1e-4)


def test_a_constant_group_is_as_large_as_its_bias():
    tensors = inputs((2, 4, 8, 8), ())
    tensors["x"] = torch.full((2, 4, 8, 8), 3.0, requires_grad=True)
    y, grads = evaluate(group_norm_silu, tensors, torch.randn(2, 4, 8, 8), 2, eps=1e-6)
    assert is_ours(y)
    bias = tensors["bias"].detach()
    torch.testing.assert_close(y, torch.nn.functional.silu(bias)[:, None, None].expand_as(y))
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_which_tensors_the_kernels_serve():
    x = inputs((2, 4, 8, 8), ())
    assert is_ours(group_norm_silu(**x, groups=2))
    transposed = x["x"].transpose(2, 3)
    results = {
        "not contiguous": group_norm_silu(transposed, 2, x["weight"], x["bias"]),
        "channels last": group_norm_silu(
            x["x"].contiguous(memory_format=torch.channels_last), 2, x["weight"], x["bias"]
        ),
    }
    for name, y in results.items():
        assert not is_ours(y), name
        expected = definition(transposed if name == "not contiguous" else x["x"], 2, 1e-5, x["weight"], x["bias"])
        torch.testing.assert_close(y, expected)
    half = {name: t.detach().bfloat16() for name, t in x.items()}
    assert group_norm_silu(**half, groups=2).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = group_norm_silu(**x, groups=2)
        assert not is_ours(y)
        assert y.dtype == definition(x["x"], 2, 1e-5, x["weight"], x["bias"]).dtype
    mapped = torch.func.vmap(lambda x: group_norm_silu(x, 2, *(x.new_ones(4),) * 2))(torch.randn(3, 2, 4, 8, 8))
    assert mapped.shape == (3, 2, 4, 8, 8)


def test_gradients_that_are_not_contiguous_and_inputs_that_are_expanded():
    torch.manual_seed(0)
    x = inputs((2, 4, 8, 8), ())
    before = torch.randn(1, 4, requires_grad=True)
    wanted = (*x.values(), before)
    dy = torch.randn(2, 4, 8, 8).transpose(2, 3)
    y = group_norm_silu(**x, groups=2, before=before.expand(2, -1))
    assert is_ours(y)
    expected = definition(**x, groups=2, eps=1e-5, before=before.expand(2, -1))
    for result, correct in zip(
        torch.autograd.grad(y, wanted, dy), torch.autograd.grad(expected, wanted, dy), strict=True
    ):
        torch.testing.assert_close(result, correct, rtol=1e-4, atol=1e-5)


def test_nothing_of_the_size_of_x_is_kept_but_x():
    x = inputs((2, 4, 16, 16))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = group_norm_silu(**x, groups=2)
    assert is_ours(y)
    assert [t.data_ptr() for t in saved if t.numel() >= x["x"].numel()] == [x["x"].data_ptr()]


def test_results_do_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    tensors, dy = inputs((3, 32, 40, 40)), torch.randn(3, 32, 40, 40)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y, grads = evaluate(group_norm_silu, tensors, dy, 8)
            assert is_ours(y)
            results.append((y, *grads))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_wrong_arguments_are_named():
    x = torch.randn(2, 4, 8, 8)
    ones = torch.ones(4)
    with pytest.raises(ValueError, match="4 channels cannot be divided into 3 groups"):
        group_norm_silu(x, 3, ones, ones)
    with pytest.raises(ValueError, match=r"weight must have shape \[4\], not \[3\]"):
        group_norm_silu(x, 2, torch.ones(3), ones)
    with pytest.raises(ValueError, match=r"scale must have shape \[2, 4\], not \[1, 4\]"):
        group_norm_silu(x, 2, ones, ones, scale=torch.ones(1, 4))
