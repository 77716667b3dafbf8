from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from stylegan_ops import reference
from stylegan_ops.bias_act import bias_act
from stylegan_ops.filtered_lrelu import filtered_lrelu
from stylegan_ops.upfirdn2d import setup_filter

GOLDEN = "sg3_ops"
GOLDEN_OPS = ("filtered_lrelu",)


def test_golden(golden_case, assert_golden):
    assert_golden(golden_case, filtered_lrelu)


def test_same_as_the_definition():
    torch.manual_seed(0)
    x, b = torch.randn(2, 3, 5, 6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    fu, fd = torch.randn(4, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    y = reference.upfirdn2d(x + b[:, None, None], fu, up=3, padding=[2, -1, 3, 4], flip_filter=True, gain=9)
    y = (functional.leaky_relu(y, 0.3) * 1.5).clamp(-2, 2)
    y = reference.upfirdn2d(y, fd, down=2, flip_filter=True)
    result = filtered_lrelu(x, fu, fd, b, 3, 2, [2, -1, 3, 4], 1.5, 0.3, 2, flip_filter=True)
    assert (y.abs() > 1).any()
    torch.testing.assert_close(result, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clamp", [None, 0.8])
def test_derivatives(clamp):
    torch.manual_seed(1)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, dtype=torch.float64, requires_grad=True)
    fu, fd = setup_filter([1, 3, 3, 1]), setup_filter([1, 2, 1])

    def op(x, b):
        return filtered_lrelu(x, fu, fd, b, up=2, down=2, padding=[2, 1, 2, 1], clamp=clamp)

    assert torch.autograd.gradcheck(op, (x, b), fast_mode=True)
    assert torch.autograd.gradgradcheck(op, (x, b), fast_mode=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(2, 8, 8)}, ValueError, r"\[N, C, H, W\]"),
        ({"b": torch.zeros(3)}, ValueError, r"b must have shape \[2\]"),
        ({"up": [2, 1]}, ValueError, "the same along both axes"),
        ({"down": 0}, ValueError, "down must be at least 1"),
        ({"clamp": -1}, ValueError, "clamp must be None or at least 0"),
        ({"fu": [1.0]}, TypeError, "f must be a tensor"),
        ({"fd": torch.ones(9)}, ValueError, "8 x 8 pixels, smaller than the 9 x 9 taps"),
        ({"fu": torch.ones(9)}, ValueError, "8 x 8 pixels"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        filtered_lrelu(**{"x": torch.zeros(1, 2, 8, 8), **arguments})


# --- every implementation

KERNELS = pytest.mark.parametrize(
    "implementation", ["cpu", pytest.param("sim", marks=pytest.mark.slow)], indirect=True, scope="module"
)
factors = st.integers(1, 4)


@KERNELS
def test_golden_by_kernels(golden_case, assert_golden, implementation):
    assert_golden(golden_case, filtered_lrelu)
    if golden_case.inputs["fu"] is not None or golden_case.inputs["fd"] is not None:
        assert implementation.calls["filtered_lrelu"] == 1


@KERNELS
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 24), st.integers(1, 24)),
    up=factors,
    down=factors,
    taps=st.tuples(*[st.one_of(st.integers(1, 13), st.tuples(st.integers(1, 7), st.integers(1, 7)))] * 2),
    padding=st.tuples(*[st.integers(-3, 20)] * 4),
    has_bias=st.booleans(),
    clamp=st.sampled_from([None, 0.6, 0.0]),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_random_shapes(implementation, shape, up, down, taps, padding, has_bias, clamp, flip, seed):
    """Value, gradient and the gradient's derivative in double precision, where no kink is near enough to matter."""
    torch.manual_seed(seed)
    fu, fd = (torch.randn(n) for n in taps)
    left, right, top, bottom = padding
    grid = shape[2] * up + top + bottom - fu.shape[0] + 1, shape[3] * up + left + right - fu.shape[-1] + 1
    assume(grid[0] >= fd.shape[0] and grid[1] >= fd.shape[-1])
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    b = torch.randn(shape[1], dtype=torch.float64, requires_grad=True) if has_bias else None

    def derivatives(op):
        y = op(x, fu, fd, b, up, down, padding, 1.3, 0.3, clamp, flip)
        generator = torch.Generator().manual_seed(seed)
        dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).requires_grad_()
        wanted = (x,) if b is None else (x, b)
        first = torch.autograd.grad(y, wanted, dy, create_graph=True)
        return [y, *first, *torch.autograd.grad(sum(grad.sin().sum() for grad in first), dy)]

    for result, expected in zip(derivatives(filtered_lrelu), derivatives(reference.filtered_lrelu), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-7, atol=1e-7)


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(implementation, dtype):
    """Rounded once, from a result in single precision."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 11, 9).to(dtype).requires_grad_()
    fu, fd, b = setup_filter([1, 3, 3, 1], separable=True), setup_filter([1, 2, 4, 2, 1]), torch.randn(3).to(dtype)
    exact = x.detach().double().requires_grad_()
    y = filtered_lrelu(x, fu, fd, b, 2, 2, 4, clamp=1.5)
    expected = reference.filtered_lrelu(exact, fu, fd, b.double(), 2, 2, 4, clamp=1.5)
    dy = torch.randn_like(y)
    (dx,), (expected_dx,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, exact, dy.double())
    assert y.dtype == dx.dtype == dtype
    eps = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=eps, atol=eps)
    torch.testing.assert_close(dx.double(), expected_dx, rtol=eps, atol=eps)


def mirrored(f, axes):
    """Makes a filter the same backwards along these axes."""
    return f if not axes else f + f.flip(axes)


@KERNELS
@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    planes=st.integers(1, 40),
    up=st.sampled_from([2, 4]),
    down=st.sampled_from([2, 4]),
    axes=st.tuples(*[st.sampled_from([(), (0,), (-1,), (0, -1)])] * 2),
    two_dimensional=st.tuples(st.booleans(), st.booleans()),
    rows=st.sampled_from([0, 0, -1, -5]),
    padding=st.tuples(*[st.integers(-3, 25)] * 4),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_filters_of_stylegan3(
    implementation, height, width, planes, up, down, axes, two_dimensional, rows, padding, flip, seed
):
    """Six taps for each phase, whose sums are computed several at once, mirrored along both axes, one or none."""
    torch.manual_seed(seed)
    taps = [6 * up, 6 * down]
    sizes = [(n + rows, n) if two else (n,) for n, two in zip(taps, two_dimensional, strict=True)]
    fu, fd = (
        mirrored(torch.randn(size), [a for a in ax if len(size) == 2 or a == -1])
        for size, ax in zip(sizes, axes, strict=True)
    )
    left, right, top, bottom = padding
    grid = height * up + top + bottom - fu.shape[0] + 1, width * up + left + right - fu.shape[-1] + 1
    assume(grid[0] >= fd.shape[0] and grid[1] >= fd.shape[-1])
    x = torch.randn(1, planes, height, width, dtype=torch.float64, requires_grad=True)

    def derivatives(op):
        y = op(x, fu, fd, None, up, down, padding, 1.3, 0.3, 0.9, flip)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return [y, *torch.autograd.grad(y, x, dy)]

    for result, expected in zip(derivatives(filtered_lrelu), derivatives(reference.filtered_lrelu), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-7, atol=1e-7 * float(expected.detach().abs().max()))


@KERNELS
@pytest.mark.parametrize("axes", [(), (0,), (-1,), (0, -1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_with_filters_of_stylegan3(implementation, axes, dtype):
    torch.manual_seed(0)
    x = torch.randn(1, 21, 14, 17).to(dtype)
    fu, fd = setup_filter(torch.rand(12)), setup_filter(mirrored(torch.rand(12, 12), axes))
    y = filtered_lrelu(x, fu, fd, None, 2, 2, [11, 10, 11, 10], clamp=1.5)
    expected = reference.filtered_lrelu(x.double(), fu, fd, None, 2, 2, [11, 10, 11, 10], clamp=1.5)
    eps = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=eps, atol=eps)


@KERNELS
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_under_a_mirrored_filter(implementation, value):
    x = torch.randn(3, 5, 20, 20)
    x[1, 2, 9, 11] = value
    fu, fd = torch.ones(12), torch.ones(12, 12)
    y = filtered_lrelu(x, fu, fd, None, 2, 2, [9, 8, 9, 8])
    expected = reference.filtered_lrelu(x.double(), fu.double(), fd.double(), None, 2, 2, [9, 8, 9, 8])
    assert torch.equal(y.isfinite(), expected.isfinite()) and y.isfinite().any()


@KERNELS
@pytest.mark.parametrize("clamp", [None, 2.0])
def test_what_is_not_finite_stays_under_the_filters(implementation, clamp):
    for value in (torch.nan, torch.inf, -torch.inf):
        x = torch.randn(3, 5, 20, 20)
        x[1, 2, 9, 11] = value
        fu, fd = torch.ones(12), torch.ones(12)
        y = filtered_lrelu(x, fu, fd, None, 2, 2, [9, 8, 9, 8], clamp=clamp)
        expected = reference.filtered_lrelu(x.double(), fu.double(), fd.double(), None, 2, 2, [9, 8, 9, 8], clamp=clamp)
        assert torch.equal(y.isfinite(), expected.isfinite()) and y.isfinite().any()


@KERNELS
def test_ties_are_decided_like_pytorch_does(implementation):
    """At the kink, and where the value is exactly the clamp."""
    x = torch.tensor([0.0, -0.0, 0.75, -2.5, 3.0]).reshape(1, 1, 1, 5).requires_grad_()
    fu = torch.ones(1, 1)
    gradients = [
        torch.autograd.grad(op(x, fu, None, None, gain=2, slope=0.3, clamp=1.5).sum(), x)[0]
        for op in (filtered_lrelu, reference.filtered_lrelu)
    ]
    assert torch.equal(*gradients) and gradients[0].flatten().tolist() == pytest.approx([0.6, 0.6, 2, 0.6, 0])


@KERNELS
def test_results_do_not_depend_on_the_number_of_planes(implementation):
    """Planes share the memory of a row."""
    torch.manual_seed(0)
    x, b, f = torch.randn(2, 23, 7, 5), torch.randn(23), torch.randn(12)
    y = filtered_lrelu(x, f, f, b, 2, 2, [9, 8, 9, 8])
    for n, c in ((0, 0), (0, 22), (1, 7)):
        alone = filtered_lrelu(x[n : n + 1, c : c + 1], f, f, b[c : c + 1], 2, 2, [9, 8, 9, 8])
        torch.testing.assert_close(y[n : n + 1, c : c + 1], alone)


@KERNELS
def test_derivative_in_a_filter(implementation):
    x, fu = torch.randn(1, 2, 6, 6), torch.randn(4, requires_grad=True)
    y = filtered_lrelu(x, fu, torch.ones(3), None, 2, 2, 3)
    expected = reference.filtered_lrelu(x, fu, torch.ones(3), None, 2, 2, 3)
    torch.testing.assert_close(*(torch.autograd.grad(t.sum(), fu) for t in (y, expected)))


@KERNELS
def test_without_resampling_it_is_bias_act(implementation):
    x, b = torch.randn(2, 3, 4, 5), torch.randn(3)
    assert torch.equal(filtered_lrelu(x, b=b, clamp=1), bias_act(x, b, act="lrelu", clamp=1))
    assert not implementation.calls["filtered_lrelu"]
    assert filtered_lrelu(x[:0], torch.ones(4), torch.ones(2), b, 2, 2, 2).shape == (0, 3, 4, 5)


def test_threads_share_the_planes(cpu_kernels):
    x, f = torch.randn(3, 70, 30, 30), torch.randn(12)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(filtered_lrelu(x, f, f, None, 2, 2, [9, 8, 9, 8]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
