"""Loading and launching through the CUDA driver, here a stand-in that runs the kernels in the simulator."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stylegan_ops import build, reference
from stylegan_ops.backends import cuda
from stylegan_ops.backends.driver import Driver, DriverError
from stylegan_ops.build import toolchain

IMAGE = b"\0image\0of kernels"
STREAM = 2**40 + 8  # The handle of a stream is a pointer.

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for the driver is a Unix library")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver's stand-in."""
    try:
        compiler = toolchain.host_compiler()
    except build.BuildError as error:
        pytest.skip(f"the driver's stand-in cannot be built: {error}")
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = Path(__file__).with_name("fake_libcuda.cpp")
    subprocess.run([*compiler.command, "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    return path


@pytest.fixture
def fake(library: Path, tmp_path: Path) -> ctypes.CDLL:
    """A fresh copy of it, with its functions for tests."""
    functions = ctypes.CDLL(shutil.copy(library, tmp_path))
    functions.fake_last_stream.restype = ctypes.c_void_p
    functions.fake_use_simulator(bytes(build.sim_library()))
    return functions


@pytest.fixture
def on_device(fake: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Sends the operators' launches to device 3 of the stand-in; the architectures that were compiled for."""
    architectures: list[str] = []

    def image(arch: str) -> Path:
        architectures.append(arch)
        (tmp_path / "kernels.cubin").write_bytes(IMAGE)
        return tmp_path / "kernels.cubin"

    launch = cuda.launch
    monkeypatch.setattr(cuda, "_driver", lambda: Driver(fake._name))
    monkeypatch.setattr(cuda, "launch", lambda plan, args, device: launch(plan, args, torch.device("cuda")))
    monkeypatch.setattr(build, "cuda_image", image)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: {3: (9, 0)}[device])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream={3: STREAM}[device]))
    cuda._device_kernels.cache_clear()
    yield architectures
    cuda._device_kernels.cache_clear()


def test_operators_through_the_driver(fake: ctypes.CDLL, on_device: list[str]) -> None:
    torch.manual_seed(0)
    cuda.load(torch.device("cuda"))
    assert on_device == ["sm_90"]
    x, b, f = torch.randn(2, 3, 9, 10), torch.randn(3), torch.randn(4, 4)
    for _ in range(2):
        y = cuda.bias_act(x, b, 1, 2, 0.2, 1.5, 0.9)
        torch.testing.assert_close(y, reference.bias_act(x, b, 1, "lrelu", 0.2, 1.5, 0.9))
        y = cuda.upfirdn2d(x, f, 2, 2, 1, 1, 2, 1, 2, 1, True, 3.0)
        torch.testing.assert_close(y, reference.upfirdn2d(x, f, 2, 1, (2, 1, 2, 1), True, 3.0))
    assert on_device == ["sm_90"]  # It is not loaded again.
    assert fake.fake_last_stream() == STREAM
    assert fake.fake_context_count() == 0


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("cuInit", 100, "cannot start: no CUDA-capable device is detected (error 100)"),
        ("cuDeviceGet", 101, "cannot find device 3: unknown error (error 101)"),
        ("cuDevicePrimaryCtxRetain", 2, "cannot use device 3: unknown error (error 2)"),
        ("cuModuleLoadData", 209, "cannot load the kernels onto device 3: unknown error (error 209)"),
        ("cuModuleGetFunction", 500, "cannot find the kernel bias_act_f32: named symbol not found (error 500)"),
        ("cuLaunchKernel", 700, "cannot launch the kernel bias_act_f32: unknown error (error 700)"),
    ],
)
def test_the_driver_refuses(fake: ctypes.CDLL, on_device: list[str], function: str, error: int, message: str) -> None:
    x = torch.ones(5)
    fake.fake_fail(function.encode(), error)
    with pytest.raises(DriverError) as caught:
        cuda.bias_act(x, None, 0, 0, 0.0, 2.0, -1.0)
    assert str(caught.value) == f"the CUDA driver {message}"
    assert fake.fake_context_count() == 0
    # Nothing half-done is kept.
    assert torch.equal(cuda.bias_act(x, None, 0, 0, 0.0, 2.0, -1.0), 2 * x)


def test_a_context_that_cannot_be_used(fake: ctypes.CDLL, on_device: list[str]) -> None:
    fake.fake_fail(b"cuCtxPushCurrent_v2", 201)
    with pytest.raises(DriverError, match="cannot use device 3: invalid device context"):
        cuda.bias_act(torch.ones(5), None, 0, 0, 0.0, 2.0, -1.0)


def test_no_driver() -> None:
    with pytest.raises(DriverError, match=r"the CUDA driver no-such-library.so cannot be loaded, install NVIDIA's"):
        Driver("no-such-library.so")


def test_another_library_in_the_place_of_the_driver() -> None:
    with pytest.raises(DriverError, match="lacks cuGetErrorString, install a newer NVIDIA driver"):
        Driver(str(build.sim_library()))
