"""The simulator of the CUDA kernels: that it runs them as a GPU may, and notices what is wrong with them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stylegan_ops import build, reference
from stylegan_ops.backends import cuda, packing, pytorch
from stylegan_ops.backends.simulator import Simulator, SimulatorError
from stylegan_ops.build import toolchain
from tests.support import sanitizers


@pytest.fixture(autouse=True)
def compiler() -> str:
    """The command that compiles C++."""
    try:
        return toolchain.host_compiler().command[0]
    except build.BuildError as error:
        pytest.skip(f"the simulator cannot be built: {error}")


@pytest.fixture
def changed_library(tmp_path: Path) -> Callable[..., Path]:
    """Builds the simulator from sources in one of which some text is replaced."""

    def make(file: str, old: str, new: str, flags: tuple[str, ...] = ("-O0",)) -> Path:
        shutil.copytree(build.CSRC, tmp_path / "csrc")
        path = tmp_path / "csrc" / "cuda" / file
        source = path.read_text(encoding="utf-8")
        assert source.count(old) == 1
        path.write_text(source.replace(old, new), encoding="utf-8")
        return build.sim_library(tmp_path / "csrc", flags)

    return make


def check_upfirdn2d(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_simulator", lambda: simulator)
    torch.manual_seed(0)
    x, f = torch.randn(1, 2, 20, 21), torch.randn(4, 4)
    y = cuda.upfirdn2d(x, f, 2, 2, 1, 1, 2, 1, 2, 1, False, 1.0)
    torch.testing.assert_close(y, reference.upfirdn2d(x, f, 2, 1, (2, 1, 2, 1)))


def test_a_missing_barrier_is_noticed(changed_library, monkeypatch) -> None:
    simulator = Simulator(changed_library("upfirdn2d.cuh", "__syncthreads();", ""))
    with pytest.raises(AssertionError, match="nan"):
        check_upfirdn2d(simulator, monkeypatch)


def test_a_barrier_that_some_threads_never_reach_is_noticed(changed_library, monkeypatch) -> None:
    change = ("__syncthreads();", "if (threadIdx.x % 2) __syncthreads();")
    simulator = Simulator(changed_library("upfirdn2d.cuh", *change))
    with pytest.raises(SimulatorError, match=r"u2_d1_4x4_\w+: some threads wait at a barrier"):
        check_upfirdn2d(simulator, monkeypatch)


def test_a_kernel_that_does_not_exist() -> None:
    with pytest.raises(SimulatorError, match="no_such_kernel: the library has no such kernel"):
        Simulator(build.sim_library()).launch("no_such_kernel", (1, 1, 1), (1, 1, 1), 0, b"")


NOTE_ORDER = """
inline void note_order(const BiasActArgs& args) {
    SGO_DYNAMIC_SHARED(int, count);
    int* const out = static_cast<int*>(args.out);
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    if (*count < 0) *count = 0;  // It begins as NaN.
    out[block * 48 + (*count)++] = thread;
    __syncthreads();
    out[block * 48 + (*count)++] = thread;
}
SGO_KERNEL(note_order, 0, BiasActArgs, note_order)
"""


def test_threads_run_in_random_order(changed_library) -> None:
    line = "SGO_FOR_EACH_DTYPE(SGO_UPFIRDN2D_KERNELS)"
    library = changed_library("kernels.cu", line, line + NOTE_ORDER)
    orders = []
    for simulator in (Simulator(library), Simulator(library)):
        for _ in range(2):
            out = torch.full([2 * 3 * 2, 2, 24], -1, dtype=torch.int32)
            args = bytes(packing.BiasActArgs(out=out.data_ptr()))
            simulator.launch("note_order", (2, 3, 2), (2, 4, 3), 4, args)
            assert torch.equal(out.sort(dim=2).values, torch.arange(24, dtype=torch.int32).expand(12, 2, 24))
            orders.append(out.flatten(0, 1))
    # It differs between blocks, behind a barrier and from launch to launch, and can be had again.
    assert len(torch.cat(orders[:2]).unique(dim=0)) == 2 * 24
    assert torch.equal(orders[0], orders[2])
    assert torch.equal(orders[1], orders[3])


@pytest.mark.slow
def test_processors_for_which_there_is_no_assembly_code(monkeypatch) -> None:
    if not Path("/usr/include/ucontext.h").is_file():
        pytest.skip("the C library has no ucontext.h, by which fibers are switched there")
    check_upfirdn2d(Simulator(build.sim_library(extra_flags=["-DCUSIM_UCONTEXT"])), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("barrier", range(5))
def test_every_barrier_of_filtered_lrelu_is_needed(barrier: int, changed_library, monkeypatch) -> None:
    """Without any one of them, threads read what others have not yet written, in some order of the threads."""
    source = (build.CSRC / "cuda" / "filtered_lrelu.cuh").read_text(encoding="utf-8")
    line = "__syncthreads();"
    places = [found.start() for found in re.finditer(re.escape(line), source)]
    assert len(places) == 5
    before = source[places[barrier] - 200 : places[barrier]]
    library = changed_library("filtered_lrelu.cuh", before + line, before)
    monkeypatch.setattr(cuda, "_simulator", lambda: Simulator(library))
    torch.manual_seed(0)
    x, b = torch.randn(1, 2, 20, 20), torch.randn(2)
    # A plane of taps reads the pixels till the end, where axes of taps have gone on to other memory.
    f = torch.randn(12, 12) / 4 if barrier == 2 else torch.randn(12)
    options = (2, 2, 9, 8, 9, 8, 1.2, 0.3, 1.5, False)
    name = "filtered_lrelu_tangent"  # it has all steps
    expected = getattr(pytorch, name)(x, x, f, f, b, *options)
    assert any(not torch.allclose(getattr(cuda, name)(x, x, f, f, b, *options), expected, atol=1e-3) for _ in range(3))


@pytest.fixture
def run_sanitized(compiler: str) -> Callable[[Path, str], subprocess.CompletedProcess[str]]:
    """Runs Python code on a simulator that was built with the sanitizers' flags."""
    sanitizers.runtimes(compiler)

    def run(library: Path, code: str) -> subprocess.CompletedProcess[str]:
        start = (
            "import pathlib, sys; from stylegan_ops.backends import cuda, simulator; "
            f"library = simulator.Simulator(pathlib.Path({str(library)!r})); cuda._simulator = lambda: library; "
        )
        return sanitizers.run_python(compiler, start + code)

    return run


@pytest.mark.slow
def test_all_kernels_under_sanitizers(run_sanitized) -> None:
    """No access out of bounds or misaligned, no overflow, nothing else that C++ leaves undefined."""
    tests = str(Path(__file__).with_name("test_cuda.py"))
    arguments = [tests, "-q", "-m", "not slow and not cuda", "-p", "no:cacheprovider"]
    library = build.sim_library(extra_flags=sanitizers.FLAGS)
    result = run_sanitized(library, f"import pytest; sys.exit(pytest.main({arguments!r}))")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert " passed" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("static_cast<T*>(args.y)[i] =", "static_cast<T*>(args.y)[i + 1] =", "heap-buffer-overflow"),
        ("pixels[i] = pixel", "pixels[i + 1] = pixel", "heap-buffer-overflow"),
        ("is_aligned(first, COUNT * sizeof(T))", "true", "misaligned address"),
    ],
)
def test_sanitizers_notice(old: str, new: str, message: str, changed_library, run_sanitized) -> None:
    library = changed_library("upfirdn2d.cuh", old, new, sanitizers.FLAGS)
    code = (
        "import torch; x, f = torch.ones(1, 1, 9, 9), torch.ones(4, 4); "
        "cuda.upfirdn2d(x, f, 2, 2, 1, 1, 2, 2, 2, 1, False, 1.0); "
        "cuda.upfirdn2d(x, f, 1, 1, 3, 3, 0, 0, 0, 0, False, 1.0)"
    )
    result = run_sanitized(library, code)
    assert result.returncode != 0
    assert message in result.stderr
    assert "upfirdn2d.cuh" in result.stderr
