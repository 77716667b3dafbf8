"""Findings, messages and exit codes of the doctor, on this machine and on machines that lack something."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from toolchains import GXX

from stylegan_ops import dispatch, doctor
from stylegan_ops.autograd import RULES
from stylegan_ops.backends import cpu, pytorch
from stylegan_ops.build import BuildError, nvrtc, toolchain
from stylegan_ops.doctor import DriverState, Gpu, Verdict

OPERATORS = [
    *("bias_act", "bias_act_grad", "bias_act_grad2", "upfirdn2d"),
    *("filtered_lrelu", "filtered_lrelu_grad", "filtered_lrelu_tangent"),
]
SINGLE_PRECISION = [name for name in RULES if name not in OPERATORS]
DTYPES = ["float64", "float32", "bfloat16", "float16"]
needs_compiler = pytest.mark.skipif(GXX is None, reason="there is no C++ compiler")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(doctor.main, list(arguments), catch_exceptions=False)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "driver_state", DriverState)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that works, without looking."""
    monkeypatch.setattr(doctor, "examine_cpu", lambda: Verdict("cpu"))


@needs_compiler
@pytest.mark.usefixtures("no_gpu")
def test_machine_that_works() -> None:
    result = run("--json")
    report = json.loads(result.output)
    assert result.exit_code == 0 and report["ok"] is True
    on_cpu, on_cuda = report["verdicts"]
    assert on_cpu["device"] == "cpu" and on_cpu["applicable"] and not on_cpu["problem"]
    assert sorted((c["operator"], c["dtype"]) for c in on_cpu["comparisons"]) == sorted(
        [(operator, dtype) for operator in OPERATORS for dtype in DTYPES]
        + [(operator, "float32") for operator in SINGLE_PRECISION]
    )
    assert all(0 <= c["error"] <= c["tolerance"] for c in on_cpu["comparisons"])
    assert on_cpu["speedups"] and all(ratio > 0 for ratio in on_cpu["speedups"].values())
    assert on_cuda["device"] == "cuda" and not on_cuda["applicable"]
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert findings["PyTorch"]["value"].startswith(torch.__version__)
    assert str(toolchain.host_compiler().command[0]) in findings["C++ compiler"]["value"]
    assert Path(findings["ninja"]["value"]).is_file()
    assert not any(finding["remedy"] for finding in report["findings"])


@pytest.mark.usefixtures("no_gpu")
def test_machine_without_compiler_and_ninja(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "library", cpu.library.__wrapped__)
    monkeypatch.setitem(sys.modules, "ninja", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("STYLEGAN_OPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    result = run()
    assert result.exit_code == 1 and not result.stderr
    assert "DOES NOT WORK: there is no working C++ compiler" in result.stdout
    assert f"remedy: {toolchain.install_compiler()}" in result.stdout
    assert "ninja is not installed: run `pip install ninja`" in result.stdout
    assert "Something does not work" in result.stdout


@pytest.mark.usefixtures("no_gpu", "quick")
def test_wrong_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run().exit_code == 0
    monkeypatch.setenv("STYLEGAN_OPS", "always")
    result = run()
    assert result.exit_code == 1 and "set STYLEGAN_OPS to auto, on or off" in result.output


@pytest.mark.usefixtures("no_gpu")
def test_text_of_a_machine_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = doctor.Comparison("upfirdn2d", "float16", 5e-4, 1e-3)
    verdict = Verdict("cpu", seconds=3.25, comparisons=[comparison], speedups={"upfirdn2d up 2": 4.25})
    monkeypatch.setattr(doctor, "examine_cpu", lambda: verdict)
    output = run().output
    assert "ready after 3.2 s; upfirdn2d in float16: largest error 50%" in output
    assert "upfirdn2d up 2 4.2x" in output
    assert "cuda           not applicable: there is no NVIDIA GPU" in output
    assert "DOES NOT WORK" not in output and "does not work" not in output


class Exact(ModuleType):
    """The raw operators as they should be: in float64, rounded once."""

    def __getattr__(self, name: str) -> Callable[..., torch.Tensor]:
        if name not in OPERATORS:
            raise AttributeError(name)

        def operator(*arguments: Any) -> torch.Tensor:
            dtype = arguments[0].dtype
            wide = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
            return getattr(pytorch, name)(*wide).to(dtype)

        return operator


def examine(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Verdict:
    monkeypatch.setattr(dispatch, "load", lambda device: kernels)
    monkeypatch.setattr(doctor, "measure", lambda kernels, device: {})
    return doctor.examine_cpu()


def test_right_kernels_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine(Exact("exact"), monkeypatch).problem == ""


def off_by_a_little(y: torch.Tensor) -> torch.Tensor:
    return y * (1 + 40 * torch.finfo(y.dtype).eps)


def off_in_one_place(y: torch.Tensor) -> torch.Tensor:
    y = y.clone()
    y[(-1,) * y.ndim] += 0.1 * y.abs().max()
    return y


def not_a_number(y: torch.Tensor) -> torch.Tensor:
    return torch.full_like(y, float("nan"))


def other_dtype(y: torch.Tensor) -> torch.Tensor:
    return y.to(torch.float64 if y.dtype != torch.float64 else torch.float32)


def other_shape(y: torch.Tensor) -> torch.Tensor:
    return y[:1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", [off_by_a_little, off_in_one_place, not_a_number, other_dtype, other_shape])
@pytest.mark.parametrize("operator", OPERATORS)
def test_wrong_kernels_are_noticed(
    operator: str,
    fault: Callable[[torch.Tensor], torch.Tensor],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels = Exact("nearly exact")
    right = getattr(kernels, operator)
    kernels.__dict__[operator] = lambda *a: fault(right(*a)) if a[0].dtype == dtype else right(*a)
    monkeypatch.setattr(doctor, "TOLERANCES", {dtype: doctor.TOLERANCES[dtype]})
    verdict = examine(kernels, monkeypatch)
    assert verdict.problem.startswith(f"{operator} in {str(dtype)[6:]} is wrong")
    assert (" by " in verdict.problem) is (fault in (off_by_a_little, off_in_one_place))
    assert "STYLEGAN_OPS=off" in verdict.remedy
    json.loads(json.dumps(verdict.comparisons[0].error), parse_constant=pytest.fail)


def test_a_single_wrong_case_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Exact("wrong for one filter")
    right = kernels.upfirdn2d
    kernels.__dict__["upfirdn2d"] = lambda x, f, *rest: right(x, f, *rest) * (1 + (rest[2:4] == (2, 2)))
    assert examine(kernels, monkeypatch).problem.startswith("upfirdn2d in ")
    kernels = Exact("wrong for one activation")
    right = kernels.bias_act
    kernels.__dict__["bias_act"] = lambda x, b, dim, act, *rest: right(x, b, dim, act, *rest) * (1 + (act == 1))
    assert examine(kernels, monkeypatch).problem.startswith("bias_act in ")


def test_kernels_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> torch.Tensor:
        raise RuntimeError("launch failure")

    verdict = examine(SimpleNamespace(bias_act=fail), monkeypatch)
    assert "launch failure" in verdict.problem and "--clean" in verdict.remedy


@needs_compiler
def test_ratios_are_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a clock that counts the operators' calls: plain PyTorch's cost 3 seconds, the kernels' 2."""
    now = 0.0

    def costing(seconds: float, module: ModuleType) -> Any:
        def call(name: str) -> Callable[..., torch.Tensor]:
            def operator(*arguments: Any) -> torch.Tensor:
                nonlocal now
                now += seconds
                return getattr(module, name)(*arguments)

            return operator

        return SimpleNamespace(**{name: call(name) for name in OPERATORS})

    slow, fast = costing(3, pytorch), costing(2, pytorch)
    monkeypatch.setattr(doctor, "pytorch", slow)
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: now)
    assert set(doctor.measure(fast, torch.device("cpu")).values()) == {1.5}


# GPUs, by stand-ins for the driver and for PyTorch

FAKE_DRIVER = """
#include <string.h>
extern "C" {
int cuDriverGetVersion(int* version) { *version = 12080; return 0; }
int cuInit(unsigned int) { return STATUS; }
int cuDeviceGetCount(int* count) { *count = 2; return 0; }
int cuDeviceGet(int* device, int index) { *device = 70 + index; return 0; }
int cuDeviceGetName(char* name, int length, int device) {
    strncpy(name, device == 70 ? "First" : "Second", length);
    return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    *value = attribute == 75 ? (device == 70 ? 9 : 12) : attribute == 76 ? (device == 70 ? 0 : 1) : -1;
    return 0;
}
}
"""


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.cpp").write_text(FAKE_DRIVER)

    def build(status: int) -> str:
        library = folder / f"libcuda{status}.so"
        command = [str(GXX), "-shared", "-fPIC", f"-DSTATUS={status}", str(folder / "driver.cpp"), "-o", str(library)]
        subprocess.run(command, check=True)
        return str(library)

    return build


@needs_compiler
def test_what_the_driver_says(fake_driver: Callable[[int], str]) -> None:
    gpus = (Gpu("First", "sm_90"), Gpu("Second", "sm_121"))
    assert doctor.driver_state(fake_driver(0)) == DriverState("12.8", gpus)
    assert doctor.driver_state(fake_driver(100)) == DriverState("12.8")
    assert doctor.driver_state(fake_driver(999)) == DriverState("12.8", (), "cuInit fails with error 999")
    assert doctor.driver_state("libno-such-driver.so") == DriverState()


GPU = DriverState("12.8", (Gpu("Card", "sm_90"),))


@pytest.fixture
def pytorch_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("pytorch_for_cuda")
def test_every_gpu_is_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels compute on the CPU here; the devices that they are asked to be loaded on count."""
    devices = []
    monkeypatch.setattr(doctor, "_examine", lambda device: devices.append(device) or Verdict(str(device)))
    verdicts = doctor.examine_cuda(GPU)
    assert devices == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert [verdict.device for verdict in verdicts] == ["cuda:0", "cuda:1"]


@pytest.mark.usefixtures("pytorch_for_cuda")
def test_gpus_that_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.examine_cuda(DriverState()) == [Verdict("cuda", applicable=False)]
    assert doctor.examine_cuda(DriverState("12.8")) == [Verdict("cuda", applicable=False)]
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert doctor.examine_cuda(GPU) == [Verdict("cuda", applicable=False)]


@pytest.mark.usefixtures("pytorch_for_cuda", "quick")
def test_gpus_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def problem(driver: DriverState) -> tuple[str, str]:
        monkeypatch.setattr(doctor, "driver_state", lambda: driver)
        result = run("--json")
        (verdict,) = (v for v in json.loads(result.output)["verdicts"] if v["device"] == "cuda")
        assert result.exit_code == 1 and verdict["applicable"]
        return verdict["problem"], verdict["remedy"]

    assert "error 999" in problem(DriverState("12.8", (), "cuInit fails with error 999"))[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cause, remedy = problem(GPU)
    assert "built for CUDA 12.6, cannot use the driver for CUDA 12.8" in cause and "newer NVIDIA driver" in remedy
    monkeypatch.setattr(torch.version, "cuda", None)
    cause, remedy = problem(GPU)
    assert "a GPU (Card)" in cause and "built without CUDA" in cause and "pip install" in remedy


def test_gpu_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device) -> ModuleType:
        raise BuildError("there is neither NVRTC nor nvcc", "install one")

    monkeypatch.setattr(dispatch, "load", refuse)
    assert doctor._examine(torch.device("cuda", 0)) == Verdict(
        "cuda:0", problem="there is neither NVRTC nor nvcc", remedy="install one"
    )


def test_survey_of_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvcc = toolchain.Compiler(("/opt/bin/nvcc",), "nvcc release 12.6", "nvcc", {})
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: nvcc)
    monkeypatch.setattr(nvrtc, "find", lambda: nvrtc.Nvrtc(tmp_path / "libnvrtc.so.12", 12))
    found = {finding.name: finding for finding in doctor.survey(GPU)}
    assert "built for CUDA 12.6" in found["PyTorch"].value
    assert found["NVIDIA driver"].value == "for CUDA up to 12.8" and found["GPU"].value == "Card, sm_90"
    assert found["nvcc"].value == "/opt/bin/nvcc, nvcc release 12.6, of the toolkit /opt"
    assert found["NVRTC"].value == str(tmp_path / "libnvrtc.so.12")
    assert not any(finding.remedy for name, finding in found.items() if name in ("nvcc", "NVRTC", "GPU"))

    def broken() -> None:
        raise BuildError("nvcc does not run", "reinstall it")

    monkeypatch.setattr(toolchain, "find_nvcc", broken)
    monkeypatch.setattr(nvrtc, "find", lambda: None)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    found = {finding.name: finding for finding in doctor.survey(GPU)}
    assert "ROCm 6.4" in found["PyTorch"].value
    assert (found["nvcc"].value, found["nvcc"].remedy) == ("nvcc does not run", "reinstall it")
    assert "pip install nvidia-cuda-nvrtc" in found["NVRTC"].remedy  # Where there is a GPU, it is missed.
    assert not {finding.name: finding for finding in doctor.survey(DriverState())}["NVRTC"].remedy


# The cache


def test_clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STYLEGAN_OPS_CACHE", str(tmp_path))
    name = "cpu-0123456789abcdef-0123456789abcdef"
    (tmp_path / name).mkdir()
    (tmp_path / name / "build.json").write_text("{}")
    for other in (f"{name}.lock", "mine.txt"):
        (tmp_path / other).touch()
    result = run("--clean")
    assert result.exit_code == 0 and result.output == f"Deleted 1 builds in {tmp_path}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_clean_that_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("STYLEGAN_OPS_CACHE", str(tmp_path))
    (tmp_path / "cpu-0123456789abcdef-0123456789abcdef").mkdir()
    monkeypatch.setattr(shutil, "rmtree", refuse)
    result = run("--clean")
    assert result.exit_code == 1 and f"{tmp_path} cannot be written (Permission denied)" in result.output


@pytest.mark.skipif(sys.platform != "linux" or GXX is None, reason="/sys refuses folders even to root")
@pytest.mark.usefixtures("no_gpu")
def test_read_only_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "library", cpu.library.__wrapped__)
    monkeypatch.setenv("STYLEGAN_OPS_CACHE", "/sys/stylegan_ops")
    result = run()
    assert result.exit_code == 1
    assert "DOES NOT WORK: the cache folder /sys/stylegan_ops cannot be written" in result.output
    assert "remedy: let the environment variable STYLEGAN_OPS_CACHE name a folder" in result.output
