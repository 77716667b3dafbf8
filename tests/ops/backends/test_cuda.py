"""The CUDA kernels and their launch plans against the reference: in the simulator, and on a GPU where there is one."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from stylegan_ops import build, reference
from stylegan_ops.backends import cuda, packing, pytorch
from stylegan_ops.build import toolchain
from stylegan_ops.samples import DEFINITIONS, sample_inputs

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Largest error where 1 is the largest value. Half precision is computed in float32 and rounded once.
TOLERANCES = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
BIAS_ACT = [
    f"{name}_{dtype}"
    for name in ("bias_act", "bias_act_grad", "bias_act_grad2")
    for dtype in cuda._DTYPE_NAMES.values()
]
UPFIRDN2D = [
    f"upfirdn2d_{dtype}{suffix}"
    for dtype in cuda._DTYPE_NAMES.values()
    for suffix in [
        "",
        *(f"_u{u}_d{d}_{n}x{n}_{tile.variant}" for (u, d, n), tiles in cuda.TILES.items() for tile in tiles),
    ]
]


@pytest.fixture(autouse=True, params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Makes every test run in the simulator and on a GPU."""
    if request.param == "cpu":
        try:
            toolchain.host_compiler()
        except build.BuildError as error:
            pytest.skip(f"the simulator cannot be built: {error}")
    with torch.device(request.param):
        yield request.param


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were launched."""
    names = []
    launch = cuda.launch

    def noting(plan: cuda.Launch, args: bytes, device: torch.device) -> None:
        names.append(plan.kernel)
        launch(plan, args, device)

    monkeypatch.setattr(cuda, "launch", noting)
    return names


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compares a result with a float64 one, errors relative to the largest value."""
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    scale = expected.abs().max().item() if expected.numel() else 1.0
    error = (actual.double() - expected).abs().max().item() if expected.numel() else 0.0
    assert error <= TOLERANCES[dtype] * scale, f"off by {error:.2e} where the largest value is {scale:.2e}"


def in_layout(x: Tensor, layout: str) -> Tensor:
    if layout == "nhwc":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return x.repeat_interleave(2, dim=x.ndim - 1)[..., ::2]
    return x.contiguous()


# upfirdn2d


def check_upfirdn2d(
    x: Tensor,
    f: Tensor,
    up: tuple[int, int] = (1, 1),
    down: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    flip: bool = False,
    gain: float = 1.0,
) -> Tensor:
    y = cuda.upfirdn2d(x, f, *up, *down, *padding, flip, gain)
    expected = reference.upfirdn2d(x.double(), f.double(), up, down, padding, flip, gain)
    assert_near(y, expected, x.dtype)
    kept = torch.channels_last if packing.is_channels_last(x) else torch.contiguous_format
    assert y.is_contiguous(memory_format=kept)
    return y


# Per kernel: batch, channels, height and width that it is planned for, and that no tile divides.
SHAPES = {"large": (1, 3, 61, 125), "small": (3, 3, 7, 5), "nhwc": (2, 37, 9, 11)}


@pytest.mark.parametrize("kernel", UPFIRDN2D)
def test_upfirdn2d_kernel(kernel: str, launched: list[str]) -> None:
    torch.manual_seed(0)
    _, dtype_name, *tiled = kernel.split("_")
    dtype = next(dtype for dtype, name in cuda._DTYPE_NAMES.items() if name == dtype_name)
    up, down, variant = (int(tiled[0][1:]), int(tiled[1][1:]), tiled[3]) if tiled else (3, 2, "large")
    for padding in [(2, 1, 2, 1), (1, 2, 3, 4), (-1, 5, 6, -2)]:
        x = in_layout(torch.randn(SHAPES[variant]).to(dtype), variant)
        # An asymmetric filter shows when it is read in the wrong direction.
        check_upfirdn2d(x, torch.randn(4, 4), (up, up), (down, down), padding, flip=padding[0] == 1, gain=1.7)
    assert launched == [kernel] * 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "nhwc", "strided"])
@pytest.mark.parametrize("taps", [(1, 1), (3, 5), (12, 2), 1, 4, 9])
def test_upfirdn2d_generic_kernel(dtype: torch.dtype, layout: str, taps: tuple[int, int] | int) -> None:
    torch.manual_seed(0)
    f = torch.randn(taps)
    x = in_layout(torch.randn(2, 5, 12, 13).to(dtype), layout)
    check_upfirdn2d(x, f, (2, 3), (3, 1), (7, 6, 5, 8), gain=0.3)
    check_upfirdn2d(x, f, (1, 2), (2, 1), (8, -3, -2, 9), flip=True)


def test_filters_for_both_axes_take_two_passes_where_that_pays(launched: list[str]) -> None:
    torch.manual_seed(0)
    for dtype, taps in [(torch.float32, 12), (torch.float16, 12), (torch.float32, 4)]:
        check_upfirdn2d(torch.randn(1, 2, 16, 16).to(dtype), torch.rand(taps), (2, 2), (1, 1), (6, 5, 6, 5), gain=4)
    assert launched == ["upfirdn2d_f32", "upfirdn2d_f32", "upfirdn2d_f16", "upfirdn2d_f32_u2_d1_4x4_large"]


factors = st.tuples(st.integers(1, 4), st.integers(1, 4))
stylegan2 = st.sampled_from([((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2))])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    resampling=st.one_of(stylegan2, st.tuples(factors, factors)),
    taps=st.one_of(st.just((4, 4)), st.tuples(st.integers(1, 6), st.integers(1, 6)), st.integers(1, 9)),
    padding=st.tuples(*[st.integers(-3, 12)] * 4),
    layout=st.sampled_from(["contiguous", "nhwc", "strided"]),
    flip=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_upfirdn2d_on_random_shapes(shape, resampling, taps, padding, layout, flip, seed) -> None:
    torch.manual_seed(seed)
    (up, down), f = resampling, torch.randn(taps)
    left, right, top, bottom = padding
    assume(shape[2] * up[1] + top + bottom >= f.shape[0])
    assume(shape[3] * up[0] + left + right >= f.shape[-1])
    check_upfirdn2d(in_layout(torch.randn(shape), layout), f, up, down, padding, flip, gain=2.0)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 0, 8), (1, 1, 1, 1)])
@pytest.mark.parametrize("layout", ["contiguous", "nhwc"])
def test_upfirdn2d_of_hardly_anything(shape: tuple[int, ...], layout: str) -> None:
    x = in_layout(torch.ones(shape), layout)
    check_upfirdn2d(x, torch.ones(4, 4), (2, 2), (1, 1), (2, 1, 2, 2))
    check_upfirdn2d(x, torch.ones(3, 2), (1, 1), (1, 1), (2, 1, 2, 1))


def test_upfirdn2d_where_memory_is_not_aligned() -> None:
    """Pairs of elements are written in one access where they are aligned only."""
    torch.manual_seed(0)
    y = check_upfirdn2d(torch.randn(1, 2, 20, 21), torch.randn(4, 4), (2, 2), (1, 1), (2, 2, 2, 1))
    assert y.shape[3] % 2 == 1  # so that every other row begins in the middle of a pair
    check_upfirdn2d(torch.randn(1, 2, 20, 21), torch.randn(4, 4), (2, 2), (1, 1), (1, 2, 2, 1))


@pytest.mark.parametrize("variant", [None, "large", "nhwc"])
def test_upfirdn2d_beyond_two_to_the_31(variant: str | None, device: str) -> None:
    """Two small planes lie 2^31 + 8 elements apart, in memory that is reserved and never filled."""
    if device != "cpu":
        pytest.skip("needs memory that is reserved only")
    x = torch.randn(2, 4, 5, dtype=torch.float16)
    apart = 2**31 + 8
    with mmap.mmap(-1, 2 * (apart + 64), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        place = (ctypes.c_char * len(memory)).from_buffer(memory)
        address = ctypes.addressof(place)
        for plane in (0, 1):
            ctypes.memmove(address + 2 * apart * plane, x[plane].contiguous().data_ptr(), 40)
        f = torch.randn(4, 4)
        y = torch.zeros(1, 2, 4, 5, dtype=torch.float16)
        args = packing.Upfirdn2dArgs.from_buffer_copy(
            packing.upfirdn2d_args(y, x[None], f, 1, 1, 1, 1, 2, 2, False, 1.0)
        )
        args.x = address
        # The kernel for channels_last steps from image to image, the others from channel to channel.
        args.batch, args.channels = (2, 1) if variant == "nhwc" else (1, 2)
        args.x_stride[:] = [apart if variant == "nhwc" else 2 * apart, 1 if variant == "nhwc" else apart, 5, 1]
        args.y_stride[:] = [20 if variant == "nhwc" else 40, 1 if variant == "nhwc" else 20, 5, 1]
        plan = cuda.plan_upfirdn2d(torch.float16, variant == "nhwc", 1, 2, 4, 5, 4, 5, 4, 4, 1, 1, 1, 1, 2, 2)
        name = "upfirdn2d_f16" + (f"_u1_d1_4x4_{variant}" if variant else "")
        tile = next((tile for tile in cuda.TILES[1, 1, 4] if tile.variant == variant), None)
        shared = tile.planes * (tile.height + 3) * (tile.width + 3) * 4 + 64 if tile else 0
        cuda.launch(cuda.Launch(name, (2, 1, 1), plan.block, shared), bytes(args), torch.device("cpu"))
        del place
    expected = reference.upfirdn2d(x[None].double(), f.double(), padding=(2, 1, 2, 1))
    assert_near(y, expected, torch.float16)


def plan(**changes: int) -> cuda.Launch:
    sizes = {"batch": 1, "channels": 1, "x_height": 64, "x_width": 64, "y_height": 128, "y_width": 128, "taps_y": 4}
    sizes |= {"taps_x": 4, "up_x": 2, "up_y": 2, "down_x": 1, "down_y": 1, "pad_x0": 2, "pad_y0": 2}
    return cuda.plan_upfirdn2d(torch.float32, False, **(sizes | changes))


def test_plans() -> None:
    # 2 x 4 tiles of 64 x 32 elements; 16 taps and (32 + 2) x (16 + 2) pixels below a tile.
    tiled = cuda.Launch("upfirdn2d_f32_u2_d1_4x4_large", (8, 1, 1), (256, 1, 1), 4 * (16 + 34 * 18))
    assert plan() == tiled
    assert plan(channels=300, batch=7).grid == (8 * 2100, 1, 1)
    assert plan(pad_x0=1).grid == (3 * 4, 1, 1)  # One element of the first tile lies before y.
    small = plan(channels=20, y_height=16, y_width=16)
    assert (small.kernel, small.grid) == ("upfirdn2d_f32_u2_d1_4x4_small", (3, 1, 1))
    assert plan(up_x=1) == cuda.Launch("upfirdn2d_f32", (64, 1, 1), (256, 1, 1), 0)
    assert plan(batch=2**30).kernel == "upfirdn2d_f32"  # More tiles than a launch can have blocks.
    assert plan(batch=2**30).grid == (2**20, 1, 1)
    assert cuda.plan_bias_act(packing.VALUE, torch.float16, 2049) == cuda.Launch(
        "bias_act_f16", (2, 1, 1), (256, 1, 1), 0
    )
    assert cuda.plan_bias_act(packing.GRAD2, torch.float64, 2**40).grid == (2**20, 1, 1)


@pytest.mark.parametrize(
    "changes", [{"x_width": 2**29}, {"y_height": 2**30}, {"pad_x0": -(2**30)}, {"taps_x": 2**30}, {"down_y": 2**24}]
)
def test_images_too_large_to_count(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"up to 2\^30 rows and columns"):
        plan(**changes)


# bias_act


def bias_act_derivatives(
    x: Tensor, b: Tensor | None, dy: Tensor, ddx: Tensor, **arguments: object
) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx and d2x of the reference in float64, by autograd."""
    x = x.double().requires_grad_()
    dy, ddx = dy.double().requires_grad_(), ddx.double()
    y = reference.bias_act(x, None if b is None else b.double(), **arguments)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    # Autograd drops a second derivative that vanishes everywhere.
    (d2x,) = torch.autograd.grad(dx, x, ddx, allow_unused=True) if dx.requires_grad else (None,)
    return y.detach(), dx.detach(), torch.zeros_like(x) if d2x is None else d2x


def check_bias_act(
    x: Tensor,
    b: Tensor | None,
    dim: int = 1,
    act: str = "lrelu",
    alpha: float = 0.2,
    gain: float = 1.3,
    clamp: float | None = None,
) -> None:
    dy, ddx = torch.randn_like(x), torch.randn_like(x)
    arguments = (b, dim, packing.ACTS.index(act), alpha, gain, -1.0 if clamp is None else clamp)
    y = cuda.bias_act(x, *arguments)
    dx = cuda.bias_act_grad(dy, x, *arguments)
    d2x = cuda.bias_act_grad2(ddx, dy, x, *arguments)
    expected = bias_act_derivatives(x, b, dy, ddx, dim=dim, act=act, alpha=alpha, gain=gain, clamp=clamp)
    for result, wanted in zip((y, dx, d2x), expected, strict=True):
        assert_near(result, wanted, x.dtype)
        if packing.is_channels_last(x):
            assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", reference.ACTIVATIONS)
@pytest.mark.parametrize("clamp", [None, 0.75])
def test_bias_act_kernels(dtype: torch.dtype, act: str, clamp: float | None, launched: list[str]) -> None:
    torch.manual_seed(0)
    x = (4 * torch.randn(3, 5, 7, 9)).to(dtype)
    check_bias_act(x, torch.randn(5).to(dtype), act=act, alpha=0.3, clamp=clamp)
    check_bias_act(torch.linspace(-40, 40, 999).to(dtype), None, 0, act, alpha=0.3, clamp=clamp)
    assert set(launched) == {name for name in BIAS_ACT if name.endswith(f"_{cuda._DTYPE_NAMES[dtype]}")}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "nhwc", "strided"])
@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_bias_along_every_dimension(dtype: torch.dtype, layout: str, dim: int) -> None:
    torch.manual_seed(0)
    for shape in [(3, 5, 4, 6), (2, 8, 16, 3), (1, 1, 5, 1), (2, 3, 1, 1)]:
        x = in_layout(torch.randn(shape).to(dtype), layout)
        check_bias_act(x, torch.randn(shape[dim]).to(dtype), dim)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (17,), (3, 300), (2, 3, 5), (2, 2, 2, 2, 3), (0, 4)])
def test_bias_act_of_any_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    check_bias_act(x, torch.randn(shape[-1]).to(dtype) if shape else None, max(0, len(shape) - 1), "swish")


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_act_where_memory_is_not_aligned(dtype: torch.dtype) -> None:
    """Eight blocks of tail elements: without alignment all are the tail, and each thread has several."""
    torch.manual_seed(0)
    x = torch.randn(2 * 5 * 409 + 1).to(dtype)[1:].reshape(2, 5, 409)
    assert x.data_ptr() % 16
    check_bias_act(x, torch.randn(5).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_block_covers_any_number_of_elements(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, b = torch.randn(2, 5, 40, 51).to(dtype), torch.randn(5).to(dtype)
    y = torch.empty_like(x)
    args = packing.bias_act_args(packing.VALUE, y, x, b, None, None, 1, packing.ACTS.index("lrelu"), 0.2, 1.0, -1.0)
    full = cuda.plan_bias_act(packing.VALUE, dtype, x.numel())
    assert full.grid[0] > 1
    cuda.launch(cuda.Launch(full.kernel, (1, 1, 1), full.block, 0), args, x.device)
    assert_near(y, reference.bias_act(x.double(), b.double(), act="lrelu", gain=1.0), dtype)
    f, y = torch.randn(4, 4), torch.empty(2, 5, 37, 48).to(dtype)
    args = packing.upfirdn2d_args(y, x, f, 1, 1, 1, 1, 0, 0, False, 1.0)
    name = f"upfirdn2d_{cuda._DTYPE_NAMES[dtype]}"
    cuda.launch(cuda.Launch(name, (1, 1, 1), full.block, 0), args, x.device)
    assert_near(y, reference.upfirdn2d(x.double(), f.double()), dtype)


def test_bias_index_in_64_bits() -> None:
    x, b, y = torch.zeros(100), torch.tensor([3.0, 4.0, 5.0]), torch.empty(100)
    args = packing.BiasActArgs.from_buffer_copy(
        packing.bias_act_args(packing.VALUE, y, x, b, None, None, 0, packing.ACTS.index("linear"), 0.0, 1.0, -1.0)
    )
    args.bias_step, args.bias_size = 2**32 + 1, 3  # 32 bits take the step for 1.
    cuda.launch(cuda.plan_bias_act(packing.VALUE, torch.float32, 100), bytes(args), x.device)
    assert torch.equal(y, torch.full([100], 3.0))


@pytest.mark.parametrize("act", reference.ACTIVATIONS)
def test_kinks_ties_and_nan_are_treated_as_by_autograd(act: str) -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 20.0, 20.5, 100.0, -100.0, math.nan])
    one = torch.ones_like(x)
    for clamp in (None, 1.0, 2.0):
        arguments = (None, 0, packing.ACTS.index(act), 0.2, 1.0, -1.0 if clamp is None else clamp)
        results = (
            cuda.bias_act(x, *arguments),
            cuda.bias_act_grad(one, x, *arguments),
            cuda.bias_act_grad2(one, one, x, *arguments),
        )
        expected = bias_act_derivatives(x, None, one, one, dim=0, act=act, alpha=0.2, gain=1.0, clamp=clamp)
        for result, wanted in zip(results, expected, strict=True):
            # Autograd multiplies the zero of the clamp by the NaN of some activations, not of all.
            end = -1 if clamp is not None and result is not results[0] else None
            torch.testing.assert_close(result.double()[:end], wanted[:end], rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_converted_as_by_pytorch(dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    linear = (None, 0, packing.ACTS.index("linear"), 0.0)
    same = cuda.bias_act(x, *linear, 1.0, -1.0)
    assert torch.equal(same.isnan(), x.isnan())
    numbers = ~x.isnan()
    assert torch.equal(same[numbers].view(torch.int16), x[numbers].view(torch.int16))
    # These reach subnormal numbers, overflow and ties between two neighbors.
    for gain in (2.0**-12, 1.0 / 3.0, 1.5, 1.0 + 2.0**-9, 2.0**-9 * 1.25, 77.0):
        expected = (x.float() * gain).to(dtype)
        result = cuda.bias_act(x, *linear, gain, -1.0)
        assert torch.equal(result[numbers].view(torch.int16), expected[numbers].view(torch.int16))


# filtered_lrelu

FILTERED = {name: sample for sample in sample_inputs("filtered_lrelu") for name in [sample.label]}


@pytest.mark.parametrize("label", FILTERED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_filtered_lrelu_kernel(label: str, dtype: torch.dtype, launched: list[str], device: str) -> None:
    sample = FILTERED[label].to(dtype, device)
    (x, *rest), options = sample.tensors, sample.options
    exact = x.double().requires_grad_()
    b = None if rest[2] is None else rest[2].double()
    expected = DEFINITIONS["filtered_lrelu"](exact, *rest[:2], b, *options)
    assert_near(cuda.filtered_lrelu(x, *rest, *options), expected.detach(), dtype)
    dy = torch.randn(expected.shape).to(device, dtype)
    (dx,) = torch.autograd.grad(expected, exact, dy.double())
    assert_near(cuda.filtered_lrelu_grad(dy, x, *rest, *options), dx, dtype)
    name = f"filtered_lrelu_{cuda._DTYPE_NAMES[dtype]}"
    assert launched == [name, name]


def test_filtered_lrelu_in_tiles(launched: list[str], device: str) -> None:
    """Of several sizes, none of which divides the result; all derivatives agree with the one tile that covers it."""
    torch.manual_seed(0)
    x, b, fu, fd = torch.randn(2, 3, 21, 17), torch.randn(3), torch.randn(12), torch.randn(12, 12)
    x, b, fu, fd = (t.to(device) for t in (x, b, fu, fd))
    options = (2, 2, 9, 8, 9, 8, 1.2, 0.3, 1.5, False)
    dy = torch.randn_like(pytorch.filtered_lrelu(x, fu, fd, b, *options))
    for tiles in (((4, 8),), ((1, 1),), ((16, 16),)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda, "FILTERED_LRELU_TILES", tiles)
            cuda.plan_filtered_lrelu.cache_clear()
            for name, first in (
                ("filtered_lrelu", ()),
                ("filtered_lrelu_grad", (dy,)),
                ("filtered_lrelu_tangent", (x,)),
            ):
                result = getattr(cuda, name)(*first, x, fu, fd, b, *options)
                expected = getattr(pytorch, name)(*(t.double() for t in (*first, x)), fu, fd, b.double(), *options)
                assert_near(result, expected, torch.float32)
    cuda.plan_filtered_lrelu.cache_clear()
    assert len(launched) == 9


def test_filters_too_large_for_a_block_are_applied_one_by_one(launched: list[str], device: str) -> None:
    x, f = torch.randn(1, 1, 9, 9).to(device), torch.randn(120).to(device)
    options = (2, 2, 120, 119, 120, 119, 1.0, 0.2, -1.0, False)
    expected = pytorch.filtered_lrelu(x.double(), f, f, None, *options)
    result = cuda.filtered_lrelu(x, f, f, None, *options)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert not launched


@pytest.mark.parametrize("kind", [(2, 2, 12, 12, False), (4, 2, 24, 12, False), (2, 2, 12, 12, True)])
def test_layers_of_stylegan3_fit_into_a_block(kind: tuple[int, int, int, int, bool]) -> None:
    up, down, taps_up, taps_down, radial = kind
    fd = (taps_down,) * (2 if radial else 1)
    call = packing.FilteredLrelu((2, 512, 86, 86), (taps_up,), fd, up, down, (9, 8, 9, 8), 1.4, 0.2, 256.0, False)
    for order in (packing.FILTERED_LRELU, packing.FILTERED_LRELU_GRAD, packing.FILTERED_LRELU_TANGENT):
        plan = cuda.plan_filtered_lrelu(order, torch.float16, call)
        assert plan is not None and plan[0].shared_bytes <= 48 * 1024 and min(plan[1]) >= 8
