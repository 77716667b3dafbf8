"""Every implementation of the operators against the golden vectors, finite differences and each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan_ops import reference, upfirdn2d
from stylegan_ops.backends.packing import ACTS
from stylegan_ops.bias_act import bias_act
from stylegan_ops.conv2d_resample import conv2d_resample
from stylegan_ops.modulated_conv2d import modulated_conv2d

GOLDEN = ("bias_act", "upfirdn2d", "conv2d_resample", "modulated_conv2d")
OPERATORS = {
    "bias_act": bias_act,
    "conv2d_resample": conv2d_resample,
    "modulated_conv2d": modulated_conv2d,
    **{name: getattr(upfirdn2d, name) for name in ("upfirdn2d", "filter2d", "upsample2d", "downsample2d")},
}
# By PyTorch's dispatcher the same kernels compute; see test_samples.py.
SIM = pytest.param("sim", marks=pytest.mark.slow)
pytestmark = pytest.mark.parametrize("implementation", ["pytorch", "cpu", SIM], indirect=True, scope="module")


def test_golden(golden_case, assert_golden, implementation):
    cancels = (
        golden_case.op == "modulated_conv2d"
        and golden_case.args["demodulate"]
        and golden_case.inputs["styles"].shape[1] == 1
    )
    assert_golden(golden_case, OPERATORS[golden_case.op], ("d_styles", "dd_styles") if cancels else ())
    resamples = golden_case.args.get("up", 1) != 1 or golden_case.args.get("down", 1) != 1
    filters = golden_case.op in ("filter2d", "upfirdn2d", "upsample2d", "downsample2d")
    if implementation.name != "pytorch" and (filters or resamples):
        assert implementation.calls["upfirdn2d"] >= (3 if "dd_r" in golden_case.outputs else 1)


def away_from_kinks(*shape):
    """Values between 0.1 and 1.1 and their negatives."""
    x = torch.rand(shape, dtype=torch.float64) + 0.1
    return torch.where(torch.rand(shape) < 0.5, x, -x).requires_grad_()


def test_derivatives_in_the_filter(implementation):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 5, requires_grad=True)
    f = torch.randn(3, 4, requires_grad=True)
    y = upfirdn2d.upfirdn2d(x, f, up=2, padding=2)
    expected = reference.upfirdn2d(x, f, 2, 1, 2)
    r = torch.randn_like(y)
    first, correct = (torch.autograd.grad(t, (x, f), r, create_graph=True) for t in (y, expected))
    second, correct_second = (
        (*torch.autograd.grad(dx.sin().sum(), f, retain_graph=True), *torch.autograd.grad(df.sin().sum(), x))
        for dx, df in (first, correct)
    )
    for result, wanted in zip((*first, *second), (*correct, *correct_second), strict=True):
        torch.testing.assert_close(result, wanted)


# --- random shapes: float32 against the reference in float64


def assert_near(result, expected, scale):
    """Within 1e-6 of the scale, which is the largest value that the sums behind a result could have had."""
    assert result.dtype == torch.float32
    assert result.shape == expected.shape
    if result.numel():
        error = (result.double() - expected).abs().max() / scale.abs().max().clamp(min=1e-30)
        assert error.item() <= 1e-6


layouts = st.sampled_from(["contiguous", "channels_last", "transposed", "sliced"])


def in_layout(x, layout):
    """X with another arrangement of its elements in memory."""
    if layout == "channels_last" and x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        return torch.stack([x, x + 1], dim=-1)[..., 0]
    return x


@settings(max_examples=80, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    dim=st.integers(0, 4),
    act=st.sampled_from(ACTS),
    has_bias=st.booleans(),
    gain=st.sampled_from([1.0, 0.5, -1.5]),
    clamp=st.sampled_from([None, 0.5, 0.0]),
    layout=layouts,
    seed=st.integers(0, 2**32),
)
def test_bias_act_of_random_tensors(implementation, shape, dim, act, has_bias, gain, clamp, layout, seed):
    torch.manual_seed(seed)
    dim = dim % len(shape)
    x = in_layout(2 * torch.randn(shape), layout).requires_grad_()
    b = torch.randn(shape[dim], requires_grad=True) if has_bias else None
    wanted = (x, b) if has_bias else (x,)
    r, s = torch.randn(2, *shape)

    def derivatives(op, x, b, r, s):
        y = op(x, b, dim, act, 0.3, gain, clamp)
        wanted = [x] if b is None else [x, b]
        first = torch.autograd.grad(y, wanted, r, create_graph=True, allow_unused=True)
        second = torch.autograd.grad(first[0], [*wanted, r], s, allow_unused=True)
        return [t.new_zeros(like.shape) if g is None else g for g, t, like in [(y, y, y), *pairs(first, second)]]

    def pairs(first, second):
        likes = [*wanted, *wanted, r]
        return [(g, x, like) for g, like in zip([*first, *second], likes, strict=True)]

    results = derivatives(bias_act, x, b, r.clone().requires_grad_(), s)
    doubles = [None if t is None else t.detach().double().requires_grad_() for t in (x, b, r, s)]
    expected = derivatives(reference.bias_act, *doubles)
    for result, correct in zip(results, expected, strict=True):
        # The sums over a bias gradient may cancel, so nothing is measured by less than one.
        assert_near(result, correct, correct.abs().max().clamp(min=1) if correct.numel() else correct)


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    taps=st.one_of(st.integers(1, 13), st.tuples(st.integers(1, 6), st.integers(1, 6)), st.none()),
    up=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    down=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(*[st.integers(-4, 14)] * 4),
    flip=st.booleans(),
    gain=st.sampled_from([1.0, 4.0, -0.5]),
    batch=st.integers(0, 2),
    channels=st.integers(1, 3),
    layout=layouts,
    seed=st.integers(0, 2**32),
)
def test_upfirdn2d_of_random_images(
    implementation, size, taps, up, down, padding, flip, gain, batch, channels, layout, seed
):
    torch.manual_seed(seed)
    x = in_layout(torch.randn(batch, channels, *size), layout).requires_grad_()
    f = None if taps is None else torch.randn(taps)
    fw, fh = (1, 1) if f is None else (f.shape[-1], f.shape[0])
    if size[1] * up[0] + sum(padding[:2]) < fw or size[0] * up[1] + sum(padding[2:]) < fh:
        return
    options = (up, down, padding, flip, gain)
    y = upfirdn2d.upfirdn2d(x, f, *options)
    r = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, r)

    def definition(x, f, r, gain):
        x = x.detach().double().requires_grad_()
        y = reference.upfirdn2d(x, None if f is None else f.double(), up, down, padding, flip, gain)
        return y, torch.autograd.grad(y, x, r.double())[0]

    expected = definition(x, f, r, gain)
    scales = definition(x.abs(), None if f is None else f.abs(), r.abs(), abs(gain))
    for result, correct, scale in zip((y, dx), expected, scales, strict=True):
        assert_near(result, correct, scale if scale.numel() else correct)


factors = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=120, deadline=None)
@given(
    size=st.tuples(st.integers(1, 34), st.integers(1, 34)),
    # Of StyleGAN2 and U-Nets, for which there are kernels of their own, and others.
    resampling=st.one_of(
        st.sampled_from([((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2))]), st.tuples(factors, factors)
    ),
    taps=st.one_of(st.sampled_from([2, 4]), st.integers(1, 13), st.tuples(st.integers(1, 6), st.integers(1, 6))),
    padding=st.tuples(*[st.integers(-4, 14)] * 4),
    planes=st.tuples(st.integers(1, 2), st.integers(1, 5)),
    format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    value=st.sampled_from([torch.nan, torch.inf, -torch.inf]),
    seed=st.integers(0, 2**32),
)
def test_what_is_not_finite_stays_under_the_filter(
    implementation, size, resampling, taps, padding, planes, format, dtype, value, seed
):
    """One pixel is NaN or infinite: so are the elements of the result that it is part of, and no others."""
    torch.manual_seed(seed)
    (up, down), f = resampling, torch.randn(taps)
    x = torch.randn(*planes, *size).to(dtype).contiguous(memory_format=format)
    if size[1] * up[0] + sum(padding[:2]) < f.shape[-1] or size[0] * up[1] + sum(padding[2:]) < f.shape[0]:
        return
    if implementation.name == "pytorch" and dtype not in (torch.float32, torch.float64):
        return  # PyTorch's own convolutions in 16 bits spread NaN to neighbors.
    x[tuple(torch.randint(n, ()) for n in x.shape)] = value
    y = upfirdn2d.upfirdn2d(x, f, up, down, padding)
    expected = reference.upfirdn2d(x.double(), f.double(), up, down, padding)
    assert torch.equal(y.isfinite(), expected.isfinite())


# --- layouts, dtypes, empty and unusual tensors


# What is convolved by PyTorch lies as that returns it.
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_kernels_keep_the_memory_format(implementation, format):
    if implementation.name == "pytorch":
        return
    x = torch.randn(2, 3, 4, 6).contiguous(memory_format=format).requires_grad_()
    for y in (bias_act(x, torch.ones(3), act="swish"), upfirdn2d.upfirdn2d(x, torch.ones(4), up=2, padding=2)):
        assert y.is_contiguous(memory_format=format)
        (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
        assert dx.is_contiguous(memory_format=format)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("act", ACTS)
def test_dtypes(implementation, act, dtype):
    torch.manual_seed(0)
    x = away_from_kinks(2, 3, 5).detach().to(dtype).requires_grad_()
    b = torch.tensor([0.25, -0.25, 0.5])
    y = bias_act(x, b, act=act, gain=1.5, clamp=4)
    (dx,) = torch.autograd.grad(y.sum(), x)
    x64 = x.detach().double().requires_grad_()
    expected = reference.bias_act(x64, b.double(), act=act, gain=1.5, clamp=4)
    (expected_dx,) = torch.autograd.grad(expected.sum(), x64)
    assert y.dtype == dx.dtype == dtype
    eps = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, atol=eps, rtol=eps)
    torch.testing.assert_close(dx.double(), expected_dx, atol=eps, rtol=eps)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0), (0,)])
def test_empty_tensors(implementation, shape):
    x = torch.zeros(shape, requires_grad=True)
    dim = min(1, len(shape) - 1)
    b = torch.zeros(shape[dim], requires_grad=True)
    y = bias_act(x, b, dim=dim, act="swish")
    assert y.shape == shape
    dx, db = torch.autograd.grad(y.sum(), (x, b))
    assert dx.shape == x.shape
    assert torch.equal(db, torch.zeros_like(b))


def test_empty_batch_of_images(implementation):
    x = torch.zeros(0, 3, 8, 8, requires_grad=True)
    y = upfirdn2d.upfirdn2d(x, torch.ones(4), down=2, padding=1)
    assert y.shape == (0, 3, 4, 4)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.shape == x.shape


def test_scalar(implementation):
    x = torch.tensor(-1.0, requires_grad=True)
    y = bias_act(x, act="lrelu", alpha=0.5, gain=3)
    assert y.shape == ()
    assert y.item() == -1.5
    assert torch.autograd.grad(y, x)[0].item() == 1.5


@pytest.mark.parametrize("act", ACTS)
def test_extreme_values(implementation, act):
    """No overflow on the way to a finite result; infinities and NaN as the reference has them."""
    x = torch.tensor([-torch.inf, -1e30, -1e4, -100, -20, 0, 19.999, 20, 20.001, 100, 1e4, 1e30, torch.inf, torch.nan])
    values = x.clone().requires_grad_(), x.clone().requires_grad_()
    for clamp in (None, 256):
        y, expected = bias_act(values[0], act=act, clamp=clamp), reference.bias_act(values[1], act=act, clamp=clamp)
        torch.testing.assert_close(y, expected, equal_nan=True)
        # Derivatives where they are not inf * 0.
        finite = slice(2, -3)
        dx, expected_dx = (
            torch.autograd.grad(v[finite].sum(), w)[0][finite] for v, w in zip((y, expected), values, strict=True)
        )
        torch.testing.assert_close(dx, expected_dx)


@pytest.mark.parametrize("act", ACTS)
def test_ties_are_decided_like_pytorch_does(implementation, act):
    """At the kink, and where the value is exactly the clamp."""
    top = reference.bias_act(torch.tensor([1.5]), act=act, gain=2).item()
    x = torch.tensor([0.0, -0.0, 1.5, 20.0], requires_grad=True)
    gradients = [
        torch.autograd.grad(op(x, act=act, gain=2, clamp=clamp).sum(), x)[0]
        for op in (bias_act, reference.bias_act)
        for clamp in (None, abs(top), 0)
    ]
    for result, expected in zip(gradients[:3], gradients[3:], strict=True):
        torch.testing.assert_close(result, expected)


def test_operators_without_gradients_record_none(implementation):
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with torch.no_grad():
        assert not bias_act(x, act="lrelu").requires_grad
        assert not upfirdn2d.upfirdn2d(x, torch.ones(4), padding=2).requires_grad
    with torch.inference_mode():
        assert bias_act(torch.ones(2, 3), act="lrelu").is_inference()
