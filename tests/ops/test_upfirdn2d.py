from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan_ops import reference
from stylegan_ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

GOLDEN = "upfirdn2d"


def test_golden_reference(golden_case, assert_golden):
    if golden_case.op == "upfirdn2d":
        assert_golden(golden_case, reference.upfirdn2d)


def test_golden_setup_filter(fixture_path, golden):
    arrays = golden("ops/setup_filter")
    cases = json.loads(fixture_path("ops/setup_filter.json").read_text())["cases"]
    kinds = {
        "np_f64": lambda f: np.array(f, dtype=np.float64),
        "np_i64": lambda f: np.array(f, dtype=np.int64),
        "torch_f32": lambda f: torch.tensor(f, dtype=torch.float32),
        "torch_f64": lambda f: torch.tensor(f, dtype=torch.float64),
    }
    assert len(cases) == 139
    for case in cases:
        args = dict(case["args"])
        if "input_kind" in args:
            args["f"] = kinds[args.pop("input_kind")](args["f"])
        result, expected = setup_filter(**args), arrays[case["outputs"]["y"]]
        assert result.dtype == torch.float32, case
        assert result.shape == expected.shape, case
        assert np.abs(result.numpy() - expected).max() <= 1e-6 * np.abs(expected).max(), case


def test_setup_filter_on_the_meta_device():
    with torch.device("meta"):
        assert setup_filter([1, 3, 3, 1]).is_meta
    assert setup_filter([1, 3, 3, 1], device="meta").is_meta


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"f": np.zeros([2, 2, 2])}, r"not \[2, 2, 2\]"),
        ({"f": []}, r"not \[0\]"),
        ({"f": [[1, 2], [3, 4]], "separable": True}, "cannot be separable"),
        ({"f": [1, -1]}, "sum to zero"),
        ({"f": [1, 1], "separable": True, "gain": -1}, "must not be negative, and is -1"),
    ],
)
def test_setup_filter_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        setup_filter(**arguments)


def along_one_axis(x, f, up, down, before, after):
    """The definition along the last axis, with SciPy's convolution: stuff, pad or crop, convolve, decimate."""
    stuffed = np.zeros([*x.shape[:-1], x.shape[-1] * up])
    stuffed[..., ::up] = x
    stuffed = np.pad(stuffed, [(0, 0)] * (x.ndim - 1) + [(max(0, before), max(0, after))])
    stuffed = stuffed[..., max(0, -before) : stuffed.shape[-1] - max(0, -after)]
    full = scipy.signal.upfirdn(f, stuffed, axis=-1)
    return full[..., len(f) - 1 : stuffed.shape[-1]][..., ::down]


resampling = st.fixed_dictionaries(
    {
        "size": st.tuples(st.integers(1, 9), st.integers(1, 9)),
        "taps": st.one_of(st.integers(1, 13), st.tuples(st.integers(1, 6), st.integers(1, 6)), st.none()),
        "up": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "down": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "padding": st.tuples(*[st.integers(-4, 14)] * 4),
        "flip_filter": st.booleans(),
        "gain": st.sampled_from([1, 4, -0.5]),
        "batch": st.integers(0, 2),
    }
)


def make_arguments(drawn):
    """Tensors for a drawn case, and whether the padded image is at least as large as the filter."""
    arguments = dict(drawn)
    taps, (height, width) = arguments.pop("taps"), arguments.pop("size")
    x = torch.randn(arguments.pop("batch"), 3, height, width, dtype=torch.float64)
    f = None if taps is None else torch.randn(taps, dtype=torch.float64)
    fw, fh = (1, 1) if f is None else (f.shape[-1], f.shape[0])
    left, right, top, bottom = drawn["padding"]
    fits = width * drawn["up"][0] + left + right >= fw and height * drawn["up"][1] + top + bottom >= fh
    return x, f, arguments, fits


@settings(max_examples=150, deadline=None)
@given(resampling)
def test_same_as_the_reference(drawn):
    x, f, arguments, fits = make_arguments(drawn)
    if not fits:
        with pytest.raises(ValueError, match="smaller than"):
            upfirdn2d(x, f, **arguments)
        return
    torch.testing.assert_close(upfirdn2d(x, f, **arguments), reference.upfirdn2d(x, f, **arguments))


@settings(max_examples=100, deadline=None)
@given(resampling)
def test_same_as_scipy(drawn):
    x, _, arguments, _ = make_arguments(drawn)
    f = np.random.default_rng(0).normal(size=drawn["taps"] if isinstance(drawn["taps"], int) else 4)
    left, right, top, bottom = drawn["padding"]
    if min(x.shape[3] * drawn["up"][0] + left + right, x.shape[2] * drawn["up"][1] + top + bottom) < len(f):
        return
    taps = f[::-1] if drawn["flip_filter"] else f
    rows = along_one_axis(x.numpy(), taps, drawn["up"][0], drawn["down"][0], left, right)
    columns = along_one_axis(rows.swapaxes(2, 3), taps, drawn["up"][1], drawn["down"][1], top, bottom)
    expected = columns.swapaxes(2, 3) * drawn["gain"]
    result = upfirdn2d(x, torch.from_numpy(f), **arguments)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "arguments",
    [
        {"up": 2, "padding": [2, 1, 2, 1], "gain": 4},
        {"down": 2, "padding": 1},
        {"up": [1, 3], "down": [2, 1], "padding": [-1, 3, 4, -2], "flip_filter": True},
    ],
)
def test_derivatives(arguments):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    f = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, f: upfirdn2d(x, f, **arguments), (x, f), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, f: upfirdn2d(x, f, **arguments), (x, f), fast_mode=True)


@pytest.mark.parametrize("taps", [[1, 3, 3, 1], [1, 2, 1], [1] * 12])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_resizing_a_constant_image_keeps_it(taps, factor):
    image = torch.full([1, 2, 36, 54], 0.7)
    f = setup_filter(taps)
    # Away from the border, where zeros come in, a constant remains that constant.
    phases = {sum(taps[phase::factor]) for phase in range(factor)}
    if len(phases) == 1:  # otherwise every factor-th pixel is brighter
        up = upsample2d(image, f, up=factor)
        assert up.shape == (1, 2, 36 * factor, 54 * factor)
        inner = up[:, :, 6 * factor : -6 * factor, 6 * factor : -6 * factor]
        torch.testing.assert_close(inner, torch.full_like(inner, 0.7))
    down = downsample2d(image, f, down=factor)
    assert down.shape == (1, 2, 36 // factor, 54 // factor)
    inner = down[:, :, 6 // factor + 1 : -6 // factor, 6 // factor + 1 : -6 // factor]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.7))
    assert filter2d(image, f).shape == image.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("arguments", [{"up": 2, "padding": 2}, {"down": 2}])
def test_result_has_the_dtype_of_x(dtype, arguments):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8).to(dtype)
    y = upfirdn2d(x, setup_filter([1, 3, 3, 1]), **arguments)
    assert y.dtype == dtype
    expected = reference.upfirdn2d(x.double(), setup_filter([1, 3, 3, 1]), **arguments)
    torch.testing.assert_close(y.double(), expected, atol=4 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize("arguments", [{"up": 2, "padding": 2}, {"down": 2}])
def test_empty_batch(arguments):
    x = torch.zeros(0, 3, 8, 8, requires_grad=True)
    y = upfirdn2d(x, setup_filter([1, 3, 3, 1]), **arguments)
    assert y.shape == reference.upfirdn2d(x.new_zeros(1, 3, 8, 8), setup_filter([1, 3, 3, 1]), **arguments)[:0].shape
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, TypeError, "not torch.uint8"),
        ({"x": None}, TypeError, "not NoneType"),
        ({"x": torch.zeros(3, 8, 8)}, ValueError, r"\[N, C, H, W\] .*not \[3, 8, 8\]"),
        ({"x": torch.zeros(1, 0, 8, 8)}, ValueError, "C at least 1"),
        ({"f": [1, 3, 3, 1]}, TypeError, "setup_filter.*not list"),
        ({"f": torch.zeros(2, 2, 2)}, ValueError, r"not \[2, 2, 2\]"),
        ({"f": torch.zeros(0)}, ValueError, r"not \[0\]"),
        ({"up": 0}, ValueError, "up must be at least 1, not 0"),
        ({"down": [2, -1]}, ValueError, r"down must be at least 1, not \[2, -1\]"),
        ({"up": 1.5}, ValueError, "up must be 1 or 2 whole numbers, not 1.5"),
        ({"up": [1, 2, 3]}, ValueError, "up must be 1 or 2"),
        ({"up": "2"}, ValueError, "not '2'"),
        ({"padding": [1, 2, 3]}, ValueError, "padding must be 1 or 2 or 4"),
        ({"padding": -3}, ValueError, "2 x 2 pixels after upsampling and padding, smaller than the 4 x 4 taps"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        upfirdn2d(**{"x": torch.zeros(1, 3, 8, 8), "f": setup_filter([1, 3, 3, 1]), **arguments})
