from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from stylegan_ops import reference
from stylegan_ops.conv2d_resample import conv2d_resample
from stylegan_ops.upfirdn2d import setup_filter


def definition(x, w, f, up, down, padding, groups, flip_weight, flip_filter):
    """Upsample with the filter, pad, convolve, downsample with the filter: one after the other."""
    fw, fh = (1, 1) if f is None else (f.shape[-1], f.shape[0])
    left, right, top, bottom = padding
    if up > 1:
        left, right = left + (fw + up - 1) // 2, right + (fw - up) // 2
        top, bottom = top + (fh + up - 1) // 2, bottom + (fh - up) // 2
    if down > 1:
        left, right = left + (fw - down + 1) // 2, right + (fw - down) // 2
        top, bottom = top + (fh - down + 1) // 2, bottom + (fh - down) // 2
    sides = [left, right, top, bottom]
    x = reference.upfirdn2d(x, f if up > 1 else None, up, 1, sides, flip_filter, gain=up**2)
    x = functional.conv2d(x, w if flip_weight else w.flip([2, 3]), groups=groups)
    return reference.upfirdn2d(x, f, 1, down, 0, flip_filter) if down > 1 else x


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(3, 8), st.integers(3, 8)),
    kernel=st.one_of(st.just((1, 1)), st.tuples(st.integers(1, 4), st.integers(1, 4))),
    taps=st.one_of(st.none(), st.integers(1, 5), st.tuples(st.integers(1, 4), st.integers(1, 4))),
    up=st.integers(1, 4),
    down=st.integers(1, 3),
    padding=st.tuples(*[st.integers(-2, 4)] * 4),
    groups=st.integers(1, 3),
    flips=st.tuples(st.booleans(), st.booleans()),
    batch=st.integers(0, 2),
)
def test_same_as_the_definition(size, kernel, taps, up, down, padding, groups, flips, batch):
    x = torch.randn(batch, 2 * groups, *size, dtype=torch.float64)
    w = torch.randn(3 * groups, 2, *kernel, dtype=torch.float64)
    f = None if taps is None else torch.randn(taps, dtype=torch.float64)
    try:
        expected = definition(x, w, f, up, down, padding, groups, *flips)
    except RuntimeError:
        expected = None
    if expected is None or 0 in expected.shape[2:]:
        with pytest.raises(ValueError, match="smaller than"):
            conv2d_resample(x, w, f, up, down, padding, groups, *flips)
        return
    result = conv2d_resample(x, w, f, up, down, padding, groups, *flips)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_derivatives(kernel_size, up, down):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2, kernel_size, kernel_size, dtype=torch.float64, requires_grad=True)
    f = setup_filter([1, 3, 3, 1])

    def op(x, w):
        return conv2d_resample(x, w, f, up=up, down=down, padding=kernel_size // 2, groups=2, flip_weight=False)

    assert torch.autograd.gradcheck(op, (x, w), fast_mode=True)
    assert torch.autograd.gradgradcheck(op, (x, w), fast_mode=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(4, 8, 8)}, ValueError, r"\[N, C, H, W\]"),
        ({"w": torch.zeros(5, 4, 3, 3, dtype=torch.float64)}, TypeError, "torch.float32, not torch.float64"),
        ({"w": None}, TypeError, "not NoneType"),
        ({"w": torch.zeros(5, 4, 3)}, ValueError, r"not \[5, 4, 3\]"),
        ({"w": torch.zeros(5, 3, 3, 3)}, ValueError, r"4 channels does not fit w \[5, 3, 3, 3\] in 1 groups"),
        ({"w": torch.zeros(5, 2, 3, 3), "groups": 2}, ValueError, "in 2 groups"),
        ({"groups": 0}, ValueError, "in 0 groups"),
        ({"up": [2, 1]}, ValueError, "the same along both axes"),
        ({"down": 0}, ValueError, "down must be at least 1"),
        ({"padding": -3}, ValueError, "2 x 2 pixels after upsampling and padding, smaller than the 3 x 3 taps"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        conv2d_resample(**{"x": torch.zeros(1, 4, 8, 8), "w": torch.zeros(5, 4, 3, 3), **arguments})
