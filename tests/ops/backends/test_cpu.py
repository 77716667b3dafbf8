"""The CPU library's raw operators against the reference in float64, on the paths and layouts that they distinguish."""

from __future__ import annotations

import ctypes
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from stylegan_ops import build, reference
from stylegan_ops.backends import cpu, packing
from tests.support import sanitizers

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SMOOTH = ["tanh", "sigmoid", "elu", "selu", "softplus", "swish"]
COMPILER = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)


@pytest.fixture(scope="module", autouse=True)
def compiled(kernels_named):
    kernels_named("cpu")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def assert_rounded(result, expected):
    """Within 1e-6 (float32) or 1e-12 (float64) of the largest value; of 16-bit types, rounded from such a value."""
    assert result.shape == expected.shape
    if not result.numel():
        return
    error = (result.double() - expected).abs()
    scale = expected.abs().max()
    if result.dtype in (torch.float64, torch.float32):
        allowed = scale * (1e-12 if result.dtype == torch.float64 else 1e-6)
    else:
        info = torch.finfo(result.dtype)
        allowed = 0.5 * info.eps * expected.abs() + 1e-6 * scale + info.smallest_normal * info.eps
    assert (error <= allowed).all(), f"off by {error.max():.2e} where the largest value is {scale:.2e}"


# --- the library itself


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_library_builds_where_there_is_a_compiler():
    assert build.cpu_library().is_file()


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_structs_are_laid_out_as_in_the_header(tmp_path):
    lines, expected = [], []
    for structure in (packing.BiasActArgs, packing.Upfirdn2dArgs, packing.Resampling, packing.FilteredLreluArgs):
        name = structure.__name__
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ctypes.sizeof(structure)}")
        for field, *_ in structure._fields_:
            member = f"offsetof({name}, {field}), sizeof((({name}*)0)->{field})"
            lines.append(f'printf("{name}.{field} %zu %zu\\n", {member});')
            descriptor = getattr(structure, field)
            expected.append(f"{name}.{field} {descriptor.offset} {descriptor.size}")
    source = f'#include <cstddef>\n#include <cstdio>\n#include "abi.h"\nint main() {{ {" ".join(lines)} }}\n'
    (tmp_path / "layout.cpp").write_text(source)
    program = tmp_path / "layout"
    subprocess.run([COMPILER, f"-I{build.CSRC}", tmp_path / "layout.cpp", "-o", program], check=True)
    assert subprocess.run([program], check=True, capture_output=True, text=True).stdout.split("\n")[:-1] == expected


def test_header_and_python_number_things_alike():
    header = (build.CSRC / "abi.h").read_text()
    numbers = {name: int(value) for name, value in re.findall(r"SGO_(\w+) = (\d+)", header)}
    assert {name.upper(): i for i, name in enumerate(packing.ACTS)}.items() <= numbers.items()
    assert {str(dtype).partition(".")[2].upper(): i for dtype, i in packing.DTYPES.items()}.items() <= numbers.items()
    assert (numbers["VALUE"], numbers["GRAD"], numbers["GRAD2"]) == (packing.VALUE, packing.GRAD, packing.GRAD2)
    assert f"ABI_VERSION {packing.ABI_VERSION}\n" in header


def test_packed_bytes_are_the_structs():
    x, b = torch.zeros(2, 3, 4, 5), torch.zeros(3)
    out = torch.empty_like(x)
    packed = packing.bias_act_args(packing.GRAD2, out, x, b, x, out, 1, 6, 0.25, 1.5, -1.0, 7, b)
    s = packing.BiasActArgs.from_buffer_copy(packed)
    assert len(packed) == ctypes.sizeof(s)
    assert (s.x, s.b, s.dy, s.ddx, s.out, s.db) == tuple(t.data_ptr() for t in (x, b, x, out, out, b))
    assert (s.numel, s.bias_size, s.bias_step, s.alpha, s.gain, s.clamp) == (120, 3, 20, 0.25, 1.5, -1.0)
    assert (s.order, s.act, s.dtype, s.num_threads) == (2, 6, 1, 7)

    x = x.half().to(memory_format=torch.channels_last)
    y = torch.empty(2, 3, 8, 15, dtype=torch.half).to(memory_format=torch.channels_last)
    f = torch.zeros(6, 7)
    packed = packing.upfirdn2d_args(y, x, f, 3, 2, 4, 5, -6, 8, True, 0.5, 9)
    u = packing.Upfirdn2dArgs.from_buffer_copy(packed)
    assert len(packed) == ctypes.sizeof(u)
    assert (u.x, u.filter, u.y) == (x.data_ptr(), f.data_ptr(), y.data_ptr())
    assert (u.batch, u.channels, u.x_height, u.x_width, u.y_height, u.y_width) == (2, 3, 4, 5, 8, 15)
    assert (tuple(u.x_stride), tuple(u.y_stride)) == (x.stride(), y.stride())
    assert (u.gain, u.filter_height, u.filter_width, u.separable) == (0.5, 6, 7, 0)
    assert (u.up_x, u.up_y, u.down_x, u.down_y, u.pad_x0, u.pad_y0) == (3, 2, 4, 5, -6, 8)
    assert (u.flip, u.dtype, u.num_threads) == (1, 3, 9)


def test_packed_bytes_of_filtered_lrelu_are_the_struct():
    x, b, fu, fd = torch.zeros(2, 3, 4, 5), torch.zeros(3), torch.zeros(6), torch.zeros(2, 3)
    call = packing.FilteredLrelu(x.shape, fu.shape, fd.shape, 4, 2, (-1, 2, 3, 1), 1.5, 0.25, 2.0, True)
    y = torch.empty(call.y_shape)
    assert y.shape == reference.filtered_lrelu(x, fu, fd, b, 4, 2, (-1, 2, 3, 1)).shape
    packed = packing.filtered_lrelu_args(packing.FILTERED_LRELU, y, x, b, None, {"fu": fu, "fd": fd}, call, 7, (8, 9))
    s = packing.FilteredLreluArgs.from_buffer_copy(packed)
    assert len(packed) == ctypes.sizeof(s)
    assert (s.x, s.b, s.signal, s.y) == (x.data_ptr(), b.data_ptr(), None, y.data_ptr())
    up, down = s.x_up, s.down
    assert (up.filter, up.height, up.width, up.gain, up.filter_height, up.filter_width) == (
        fu.data_ptr(),
        4,
        5,
        16,
        6,
        6,
    )
    assert (up.separable, up.flip, up.factor, up.pad_x, up.pad_y) == (1, 1, 4, -1, 3)
    assert (down.filter, down.height, down.width, down.gain) == (fd.data_ptr(), *y.shape[2:], 1)
    assert (down.filter_height, down.filter_width, down.separable, down.flip, down.factor) == (2, 3, 0, 1, 2)
    assert (s.batch, s.channels, s.gain, s.slope, s.clamp) == (2, 3, 1.5, 0.25, 2.0)
    assert (s.dtype, s.num_threads, s.tile_height, s.tile_width) == (1, 7, 8, 9)


def test_library_refuses_what_it_does_not_know():
    x = torch.zeros(4)
    with pytest.raises(ValueError, match="activation 9"):
        cpu.bias_act(x, None, 0, len(packing.ACTS), 0.0, 1.0, -1.0)
    packed = bytearray(packing.upfirdn2d_args(*[torch.zeros(1, 1, 1, 1)] * 3, 1, 1, 1, 1, 0, 0, False, 1.0))
    packed[packing.Upfirdn2dArgs.dtype.offset] = 4
    assert cpu.library().stylegan_ops_upfirdn2d(bytes(packed)) == 1


# --- element types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gain", [1.0, 0.3, 1e-3, 7e4, 1 + 2**-11, 1 + 2**-8])  # The last two make ties.
def test_16_bit_conversions_of_every_value(dtype, gain):
    """Loading and rounding, subnormal and infinite values included, against PyTorch's conversions."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    y = cpu.bias_act(x, None, 0, packing.ACTS.index("linear"), 0.0, gain, -1.0)
    expected = (x.float() * torch.tensor(gain)).to(dtype)
    nan = expected.isnan()
    assert torch.equal(y.isnan(), nan)
    assert torch.equal(y.view(torch.int16)[~nan], expected.view(torch.int16)[~nan])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4e-7), (torch.float64, 1e-15)])
@pytest.mark.parametrize("act", SMOOTH)
def test_activations_are_accurate_everywhere(act, dtype, tolerance):
    """Relative to each single value, however small: nothing may cancel."""
    small = torch.logspace(-30, 0, 5000, dtype=torch.float64)
    x = torch.cat([torch.linspace(-85, 85, 20001, dtype=torch.float64), small, -small]).to(dtype)
    y = cpu.bias_act(x, None, 0, packing.ACTS.index(act), 0.0, 1.0, -1.0)
    expected = reference.bias_act(x.double(), act=act, gain=1)
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=1e-37)


# --- bias_act


def check_bias_act_grads(dy, x, b, options):
    """The derivatives in x and b in one pass: the former is that of its own pass, the latter its sum."""
    dx, db = cpu.bias_act_grads(dy, x, b, *options)
    assert torch.equal(dx, cpu.bias_act_grad(dy, x, b, *options))
    assert db.shape == b.shape
    assert db.dtype == x.dtype
    dims = [i for i in range(x.ndim) if i != options[0]]
    terms = dx.double()
    expected, scale = (terms.sum(dims), terms.abs().sum(dims)) if dims else (terms, terms.abs())
    # The terms of dx were rounded, those of db's sum were not.
    allowed = {torch.float64: 1e-14, torch.float32: 1e-6}.get(x.dtype, torch.finfo(x.dtype).eps)
    assert ((db.double() - expected).abs() <= allowed * scale + 1e-7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", packing.ACTS)
def test_bias_act_and_derivatives(act, dtype):
    generator = random.Random(f"{act} {dtype}")
    torch.manual_seed(0)
    for shape, dim in [
        ((3, 5, 7, 9), 1),  # Runs of one bias, that blocks of 1024 elements cut through,
        ((2, 3, 40, 41), 1),  # longer than a block,
        ((3, 700), 1),  # a bias per element,
        ((2000,), 0),
        ((4, 3), 0),
        ((5, 1, 3), 1),
        ((5, 7, 3), 2),
        ((0, 3, 4), 1),
        ((), 0),
        ((3, 1, 5, 50), 1),  # One bias for all, and
        ((50, 3, 5, 5), 1),  # several runs in a block.
    ]:
        x = (3 * torch.randn(shape, dtype=torch.float64)).to(dtype)
        if len(shape) == 4 and generator.random() < 0.5:
            x = x.to(memory_format=torch.channels_last)
        b = torch.randn(shape[dim]).to(dtype) if shape and generator.random() < 0.8 else None
        dy, ddx = torch.randn_like(x), torch.randn_like(x)
        for clamp in (-1.0, 2.5):
            options = (dim, packing.ACTS.index(act), 0.3, -1.7, clamp)
            x64, dy64 = x.double().requires_grad_(), dy.double().requires_grad_()
            y64 = reference.bias_act(
                x64, None if b is None else b.double(), dim, act, 0.3, -1.7, None if clamp < 0 else clamp
            )
            (dx64,) = torch.autograd.grad(y64, x64, dy64, create_graph=True)
            results = [cpu.bias_act(x, b, *options), cpu.bias_act_grad(dy, x, b, *options)]
            expected = [y64, dx64]
            if act in SMOOTH:
                results.append(cpu.bias_act_grad2(ddx, dy, x, b, *options))
                expected += torch.autograd.grad(dx64, x64, ddx.double())
            else:
                assert not cpu.bias_act_grad2(ddx, dy, x, b, *options).any()
            if b is not None:
                check_bias_act_grads(dy, x, b, options)
            # Whether a value is clamped may be decided by its last bit.
            near = (y64.abs() - clamp).abs() < 1e-5
            for result, correct in zip(results, expected, strict=True):
                assert result.dtype == dtype
                assert result.stride() == x.stride()
                assert_rounded(result.masked_fill(near, 0), correct.detach().masked_fill(near, 0))


@pytest.mark.parametrize("act", packing.ACTS)
def test_kinks_and_ties_as_in_autograd(act):
    """Derivatives exactly at zero, at softplus's threshold and at the clamp."""
    index = packing.ACTS.index(act)
    x = torch.tensor([0.0, -0.0, 20.0, 3.0], dtype=torch.float64, requires_grad=True)
    # Only of piecewise linear functions both sides compute the very same value.
    exact = act in ("linear", "relu", "lrelu")
    for limit in (-1.0, 6.0) if exact else (-1.0,):
        y = reference.bias_act(x, None, 0, act, 0.3, 2, None if limit < 0 else limit)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(x), create_graph=True)
        ones = torch.ones_like(x).detach()
        options = (0, index, 0.3, 2.0, limit)
        torch.testing.assert_close(cpu.bias_act_grad(ones, x.detach(), None, *options), dx.detach())
        if act in SMOOTH:
            (d2x,) = torch.autograd.grad(dx, x, ones)
            result = cpu.bias_act_grad2(ones, ones, x.detach(), None, *options)
            keep = torch.tensor([True, True, act != "softplus", True])  # There, PyTorch's orders disagree.
            torch.testing.assert_close(result[keep], d2x[keep])


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_bias_act_makes_other_layouts_contiguous(dim):
    x = torch.randn(5, 4, 3, 2).permute(3, 1, 2, 0)
    b = torch.randn(2 * x.shape[dim])[::2]
    dy = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last)
    options = (dim, packing.ACTS.index("swish"), 0.0, 1.0, -1.0)
    expected = [
        cpu.bias_act(x.contiguous(), b, *options),
        cpu.bias_act_grad(dy.contiguous(), x.contiguous(), b, *options),
    ]
    torch.testing.assert_close(expected[0], reference.bias_act(x, b, dim, "swish", gain=1))
    results = [cpu.bias_act(x, b, *options), cpu.bias_act_grad(dy, x, b, *options)]
    for result, correct in zip(results, expected, strict=True):
        assert result.is_contiguous()
        assert torch.equal(result, correct)


# --- upfirdn2d


def random_filter(generator):
    kind = generator.choice(["separable", "outer", "full", "binomial", "zero"])
    size = [generator.randint(1, 6), generator.randint(1, 6)]
    if kind == "separable":
        return torch.randn(generator.randint(1, 13))
    if kind == "outer":
        return torch.outer(torch.randn(size[0]), torch.randn(size[1]))
    if kind == "binomial":
        return torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
    return torch.randn(size) if kind == "full" else torch.zeros(size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_upfirdn2d_of_random_images(dtype):
    generator = random.Random(str(dtype))
    torch.manual_seed(0)
    done = 0
    while done < 150:
        # Small images, rows that are too long for several at once, and more rows than a thread takes at once.
        size = generator.choice([(1, 12, 1, 12), (1, 12, 60, 90), (60, 140, 1, 12), (1, 3, 1100, 1200)])
        x = torch.randn(
            generator.randint(0, 3),
            generator.randint(1, 5),
            generator.randint(*size[:2]),
            generator.randint(*size[2:]),
            dtype=dtype,
        )
        if generator.random() < 0.4:
            x = x.to(memory_format=torch.channels_last)
        f = random_filter(generator)
        up_x, up_y, down_x, down_y = (generator.choice([1, 1, 2, 2, 3, 4, 5]) for _ in range(4))
        sides = [generator.randint(-5, 9) for _ in range(4)]
        width = x.shape[3] * up_x + sum(sides[:2])
        height = x.shape[2] * up_y + sum(sides[2:])
        # What crops more than there is from one side, the reference cannot do.
        if width < f.shape[-1] or height < f.shape[0]:
            continue
        done += 1
        flip, gain = generator.random() < 0.5, generator.choice([1.0, 4.0, -0.3])
        y = cpu.upfirdn2d(x, f, up_x, up_y, down_x, down_y, *sides, flip, gain)
        assert y.dtype == dtype
        assert packing.is_channels_last(y) <= packing.is_channels_last(x)
        format = torch.channels_last if packing.is_channels_last(x) else torch.contiguous_format
        assert y.is_contiguous(memory_format=format)
        expected = reference.upfirdn2d(x.double(), f, (up_x, up_y), (down_x, down_y), sides, flip, gain)
        assert_rounded(y, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("deviation", [0.0, 1e-5])
def test_almost_separable_filters_are_not_taken_for_separable(dtype, deviation):
    f = torch.outer(torch.tensor([0.1, 0.7, 0.3]), torch.tensor([0.3, 1.1, 0.9, 0.2]))
    f[2, 3] += deviation
    x = torch.zeros(1, 1, 5, 6, dtype=dtype)
    x[0, 0, 2, 3] = 1
    y = cpu.upfirdn2d(x, f, 1, 1, 1, 1, 3, 3, 2, 2, False, 1.0)
    expected = torch.zeros_like(y)
    expected[0, 0, 2:5, 3:7] = f
    torch.testing.assert_close(y, expected, rtol=0, atol=1.2e-7 if dtype == torch.float32 else 0)


def test_padding_alone_makes_zeros_and_cropping_takes_all_of_a_side():
    f = torch.ones(2, 2)
    x = torch.ones(1, 2, 3, 3)
    assert not cpu.upfirdn2d(x, f, 1, 1, 1, 1, 20, -8, 20, -8, False, 1.0).any()
    y = cpu.upfirdn2d(x, f, 1, 1, 1, 1, -2, 3, -2, 3, False, 1.0)
    expected = torch.zeros(3, 3)
    expected[0, 0] = 1
    assert torch.equal(y, expected.expand(1, 2, 3, 3))


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_small_planes_under_sanitizers(tmp_path):
    """Vectors reach beyond the planes that they filter, but never beyond memory that is theirs to read."""
    sanitizers.runtimes(COMPILER)
    program, source = tmp_path / "small_planes", Path(__file__).with_name("small_planes.cpp")
    flags = ["-std=c++17", "-march=native", *sanitizers.FLAGS]
    include = [f"-I{build.CSRC}", f"-I{build.CSRC / 'cpu'}"]
    subprocess.run([COMPILER, *flags, *include, source, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    computed = dict(line.split() for line in result.stdout.splitlines())
    assert computed.keys() == {"float32", "bfloat16"}
    assert min(map(int, computed.values())) > 200
    beyond = subprocess.run([program, "beside"], capture_output=True, text=True)
    assert beyond.returncode != 0
    assert "heap-buffer-overflow" in beyond.stderr


def run_sanitized(library, code):
    """Runs Python code on a CPU library that was built with the sanitizers' flags."""
    imports = "import pathlib, sys, torch; from stylegan_ops import build; from stylegan_ops.backends import cpu; "
    start = f"{imports}path = pathlib.Path({str(library)!r}); "
    return sanitizers.run_python(COMPILER, start + "build.cpu_library = lambda: path; " + code)


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_kernels_of_networks_under_sanitizers():
    """Their tests of random shapes, with nothing read or written beside a tensor and nothing undefined."""
    library = build.cpu_library(extra_flags=sanitizers.FLAGS)
    names = ("conv3x3", "group_norm_silu", "attention")
    tests = [str(Path(__file__).parents[1] / f"test_{name}.py::test_random_shapes") for name in names]
    for test in ("test_random_shapes", "test_filters_of_stylegan3"):
        tests.append(str(Path(__file__).parents[1] / f"test_filtered_lrelu.py::{test}[cpu]"))
    arguments = [*tests, "-q", "-p", "no:cacheprovider"]
    result = run_sanitized(library, f"import pytest; sys.exit(pytest.main({arguments!r}))")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "5 passed" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_sanitizers_notice(tmp_path):
    """A result beside the tensor; so what passes above is what would have been found."""
    shutil.copytree(build.CSRC, tmp_path / "csrc")
    path = tmp_path / "csrc" / "cpu" / "group_norm.cpp"
    source = path.read_text(encoding="utf-8")
    assert source.count("out[i] = z /") == 1
    path.write_text(source.replace("out[i] = z /", "out[i + 1] = z /"), encoding="utf-8")
    library = build.cpu_library(tmp_path / "csrc", sanitizers.FLAGS)
    code = "c = torch.ones(4); cpu.group_norm_silu(torch.ones(1, 4, 8, 8), c, c, None, None, None, 2, 1e-5)"
    result = run_sanitized(library, code)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
    assert "group_norm.cpp" in result.stderr


# --- threads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_results_do_not_depend_on_the_number_of_threads(threads, dtype, format):
    torch.manual_seed(0)
    x = torch.randn(3, 33, 45, 67, dtype=dtype).to(memory_format=format)
    tiny = torch.randn(600, 33, 5, 5, dtype=dtype).to(memory_format=format)
    b, dy = torch.randn(33, dtype=dtype), torch.randn_like(x)
    taps = torch.tensor([1.0, 3, 3, 1])
    options = (1, packing.ACTS.index("swish"), 0.0, 1.4, 2.0)

    def results():
        return [
            cpu.bias_act(x, b, *options),
            cpu.bias_act_grad(dy, x, b, *options),
            cpu.bias_act_grad2(dy, dy, x, b, *options),
            *cpu.bias_act_grads(dy, x, b, *options),
            cpu.upfirdn2d(x, torch.outer(taps, taps), 2, 2, 1, 1, 2, 1, 2, 1, False, 4.0),
            cpu.upfirdn2d(x, torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), *[1] * 8, False, 4.0),
            cpu.upfirdn2d(tiny, taps, 1, 1, 1, 1, 2, 1, 2, 1, False, 4.0),
        ]

    threads(1)
    alone = results()
    threads(2)
    for together, expected in zip(results(), alone, strict=True):
        assert torch.equal(together, expected)
