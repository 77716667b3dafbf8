"""3 x 3 convolutions by Winograd's algorithm, against PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan_ops import dispatch
from stylegan_ops.backends import cpu
from stylegan_ops.conv3x3 import conv3x3
from stylegan_ops.modulated_conv2d import modulated_conv2d


@pytest.fixture(autouse=True)
def kernels(kernels_named, monkeypatch):
    """The kernels, which serve convolutions of any size here."""
    kernels = kernels_named("cpu")
    monkeypatch.setattr(dispatch, "implementation_for", lambda x: kernels)
    for name in ("MIN_CHANNELS", "MIN_TILES"):
        monkeypatch.setattr(cpu, name, 1)
    monkeypatch.setattr(cpu, "TILES_PER_FILTER", 10**9)


def is_ours(y):
    return type(y.grad_fn).__name__ == "Conv3x3Backward"


def evaluate(function, x, weight, bias, dy):
    """The result, and the gradients of all that require one."""
    y = function(x, weight, bias)
    wanted = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    return y, torch.autograd.grad(y, wanted, dy)


def definition(x, weight, bias):
    return torch.conv2d(x, weight, bias, padding=1)


def assert_near(result, expected):
    """Within 3e-5 of the standard deviation, some ten of the coarser rounding's own."""
    assert result.dtype == torch.float32
    assert result.shape == expected.shape
    assert ((result.double() - expected).abs().max() / expected.square().mean().sqrt()).item() < 3e-5


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 5),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 37), st.integers(1, 37)),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_random_shapes(batch, channels, size, has_bias, seed):
    torch.manual_seed(seed)
    x = torch.randn(batch, channels[0], *size, requires_grad=True)
    weight = torch.randn(channels[1], channels[0], 3, 3, requires_grad=True)
    bias = torch.randn(channels[1], requires_grad=True) if has_bias else None
    dy = torch.randn(batch, channels[1], *size)
    y, grads = evaluate(conv3x3, x, weight, bias, dy)
    assert is_ours(y)
    doubles = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected, expected_grads = evaluate(definition, *doubles, dy.double())
    for result, correct in zip((y, *grads), (expected, *expected_grads), strict=True):
        assert_near(result, correct)


def test_many_tiles_and_channels():
    """More than one block of everything."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, 70, 33, 50), torch.randn(45, 70, 3, 3)
    tensors = [t.requires_grad_() for t in (x, weight, torch.randn(45))]
    dy = torch.randn(3, 45, 33, 50)
    y, grads = evaluate(conv3x3, *tensors, dy)
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    expected, expected_grads = evaluate(definition, *doubles, dy.double())
    for result, correct in zip((y, *grads), (expected, *expected_grads), strict=True):
        assert_near(result, correct)


def test_rounding_is_as_coarse_as_stated():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 128, 32, 32), torch.randn(32, 128, 3, 3)
    expected = definition(x.double(), weight.double(), None)
    error = (conv3x3(x, weight).double() - expected).square().mean().sqrt() / expected.std()
    assert error < 2e-6


def test_neighbors_of_images_and_what_is_outside_do_not_matter():
    """Pixels of one image in memory full of NaN."""
    x = torch.full((3, 5, 9, 6), torch.nan)
    x[1] = 1
    y = conv3x3(x, torch.ones(4, 5, 3, 3))[1]
    corners = y[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, torch.full((4, 4), 20.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(y[:, 1:-1, 1:-1], torch.full((4, 7, 4), 45.0), rtol=1e-5, atol=0)


def test_second_derivatives():
    torch.manual_seed(0)

    def second(x, weight, bias, r, s):
        x, weight, bias, r = (t.requires_grad_() for t in (x, weight, bias, r))
        y = conv3x3(x, weight, bias)
        dx, dw = torch.autograd.grad(y, (x, weight), r, create_graph=True)
        loss = (dx * s).sum() + dw.square().sum()
        return y, torch.autograd.grad(loss, (x, weight, r))

    tensors = [torch.randn(shape) for shape in ((2, 6, 5, 7), (4, 6, 3, 3), (4,), (2, 4, 5, 7), (2, 6, 5, 7))]
    y, results = second(*[t.clone() for t in tensors])
    assert is_ours(y)
    y, expected = second(*[t.double() for t in tensors])
    assert not is_ours(y)
    for result, correct in zip(results, expected, strict=True):
        torch.testing.assert_close(result.double(), correct, rtol=1e-4, atol=1e-3)


def test_derivatives_in_float64():
    torch.manual_seed(0)
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in ((2, 2, 3, 4), (3, 2, 3, 3), (3,))]
    for tensor in tensors:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(conv3x3, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(conv3x3, tensors, fast_mode=True)


def test_which_convolutions_the_kernels_serve(monkeypatch):
    x, weight = torch.randn(4, 16, 16, 16), torch.randn(16, 16, 3, 3)
    assert dispatch.kernels_for("conv3x3", x, weight) is not None
    assert dispatch.kernels_for("conv3x3", x.transpose(2, 3), weight) is None
    assert dispatch.kernels_for("conv3x3", x.contiguous(memory_format=torch.channels_last), weight) is None
    assert dispatch.kernels_for("conv3x3", x.double(), weight.double()) is None
    assert dispatch.kernels_for("conv3x3", x, weight[..., :1]) is None
    assert dispatch.kernels_for("conv3x3", x[0], weight) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dispatch.kernels_for("conv3x3", x, weight) is None
        assert conv3x3(x, weight).dtype == torch.bfloat16
    transformed = torch.func.vmap(conv3x3, (0, None))(torch.randn(2, 4, 16, 5, 6), weight)
    assert transformed.shape == (2, 4, 16, 5, 6)
    assert conv3x3(x[:0], weight).shape == (0, 16, 16, 16)
    monkeypatch.undo()
    assert dispatch.kernels_for("conv3x3", x[:1], weight) is None  # Too few pixels,
    assert dispatch.kernels_for("conv3x3", x[:, :8], weight[:, :8]) is None  # channels,
    assert (
        dispatch.kernels_for("conv3x3", torch.randn(4, 512, 8, 8), torch.randn(512, 512, 3, 3)) is None
    )  # or pixels for such filters.


def test_modulated_convolutions_use_them(monkeypatch):
    torch.manual_seed(0)
    x, weight, styles = torch.randn(4, 16, 64, 64), torch.randn(16, 16, 3, 3), torch.randn(4, 16)
    calls = []
    kernels = dispatch.implementation_for(x)
    monkeypatch.setattr(kernels, "conv3x3", lambda *a, plain=kernels.conv3x3, **k: calls.append(1) or plain(*a, **k))
    y = modulated_conv2d(x, weight, styles, padding=1)
    assert calls == [1]
    expected = modulated_conv2d(x.double(), weight.double(), styles.double(), padding=1)
    assert_near(y, expected)


def test_results_do_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    x, weight = torch.randn(3, 20, 45, 38, requires_grad=True), torch.randn(24, 20, 3, 3, requires_grad=True)
    dy = torch.randn(3, 24, 45, 38)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y, grads = evaluate(conv3x3, x, weight, None, dy)
            results.append((y, *grads))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
