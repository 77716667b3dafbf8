"""Choice of kernels by mode, and messages when there are none."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from toolchains import ROOT

from stylegan_ops import dispatch
from stylegan_ops.backends import cpu, cuda
from stylegan_ops.backends.driver import DriverError
from stylegan_ops.build import BuildError

X = torch.zeros(3)
ON_CUDA: Any = SimpleNamespace(is_cpu=False, is_cuda=True, device=torch.device("cuda", 0))


@pytest.fixture(autouse=True)
def as_at_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is chosen yet, and nothing has been built anywhere."""
    monkeypatch.setattr(dispatch, "_mode", None)
    monkeypatch.setattr(dispatch, "_chosen", {})
    monkeypatch.setattr(dispatch, "_warnings", set())
    monkeypatch.setattr(cpu, "library", cpu.library.__wrapped__)
    monkeypatch.setenv("STYLEGAN_OPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STYLEGAN_OPS", raising=False)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Kernels for all devices, which load in no time; the devices that they were loaded for."""
    devices: list[torch.device] = []
    monkeypatch.setattr(cpu, "library", lambda: devices.append(torch.device("cpu")))
    monkeypatch.setattr(cuda, "load", devices.append)
    return devices


def test_kernels_are_loaded_once(loads: list[torch.device]) -> None:
    assert [dispatch.implementation_for(X) for _ in range(3)] == [cpu] * 3
    assert loads == [torch.device("cpu")]
    assert [dispatch.implementation_for(ON_CUDA) for _ in range(3)] == [cuda] * 3
    assert loads == [torch.device("cpu"), torch.device("cuda", 0)]


def test_off_loads_nothing(loads: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STYLEGAN_OPS", "off")
    assert dispatch.implementation_for(X) is None and dispatch.implementation_for(ON_CUDA) is None
    assert loads == []


def test_devices_without_kernels(loads: list[torch.device], caplog: pytest.LogCaptureFixture) -> None:
    dispatch.set_mode("on")
    assert dispatch.implementation_for(X.to("meta")) is None
    assert loads == [] and not caplog.records


def test_mode_of_the_process_goes_before_the_environment(
    loads: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dispatch.mode() == "auto"
    monkeypatch.setenv("STYLEGAN_OPS", "off")
    assert dispatch.mode() == "off"
    dispatch.set_mode("on")
    assert dispatch.mode() == "on" and dispatch.implementation_for(X) is cpu
    dispatch.set_mode("off")
    assert dispatch.implementation_for(X) is None
    dispatch.set_mode(None)
    assert dispatch.mode() == "off"


def test_modes_that_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="must be auto, on or off, not 'fast'"):
        dispatch.set_mode("fast")
    monkeypatch.setenv("STYLEGAN_OPS", "yes")
    with pytest.raises(ValueError, match="STYLEGAN_OPS must be auto, on or off, not 'yes'"):
        dispatch.implementation_for(X)


@pytest.mark.usefixtures("no_compiler")
def test_auto_falls_back_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert dispatch.implementation_for(X) is None
        dispatch._chosen.clear()  # As if it were chosen for another device.
    (record,) = caplog.records
    assert record.name == "stylegan_ops" and record.levelno == logging.WARNING
    line = record.getMessage()
    assert "\n" not in line and "plain PyTorch on cpu" in line
    assert "no working C++ compiler" in line and "install" in line


@pytest.mark.usefixtures("no_compiler")
def test_on_raises() -> None:
    dispatch.set_mode("on")
    for _ in range(2):
        with pytest.raises(BuildError, match="no working C"):
            dispatch.implementation_for(X)


@pytest.mark.parametrize("error", [DriverError("the driver is too old"), OSError("undefined symbol")])
def test_kernels_that_do_not_load(
    error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(device: torch.device) -> None:
        raise error

    monkeypatch.setattr(cuda, "load", refuse)
    assert dispatch.implementation_for(ON_CUDA) is None
    (record,) = caplog.records
    assert "plain PyTorch on cuda" in record.getMessage() and str(error) in record.getMessage()
    assert "python -m stylegan_ops.doctor" in record.getMessage()
    dispatch.set_mode("on")
    with pytest.raises(BuildError, match=str(error)):
        dispatch.implementation_for(ON_CUDA)


def test_another_cause_is_another_line(
    loads: list[torch.device], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cause in ("first", "second", "first"):

        def refuse(cause: str = cause) -> None:
            raise BuildError(cause, "mend it")

        monkeypatch.setattr(cpu, "library", refuse)
        dispatch.set_mode("auto")
        assert dispatch.implementation_for(X) is None
    assert [record.getMessage()[-15:] for record in caplog.records] == ["first: mend it.", "econd: mend it."]


def test_gpus_of_others(
    loads: list[torch.device], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert dispatch.implementation_for(ON_CUDA) is None
    assert loads == [] and "NVIDIA GPUs only" in caplog.records[0].getMessage()


def test_what_failed_is_tried_again_in_a_new_mode(loads: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    library = cpu.library
    with monkeypatch.context() as patch:

        def refuse() -> ModuleType:
            raise BuildError("broken", "mend it")

        patch.setattr(cpu, "library", refuse)
        assert dispatch.implementation_for(X) is None
    assert cpu.library is library and dispatch.implementation_for(X) is None
    dispatch.set_mode("auto")
    assert dispatch.implementation_for(X) is cpu


def test_no_compiler_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The public function works, and writes its one line where nobody has set up logging: in auto, not if off."""
    program = """
import sys, torch
from stylegan_ops import bias_act, dispatch
for mode in ("off", None, None):
    dispatch.set_mode(mode)
    print(bias_act.bias_act(torch.ones(1, 2), act="relu", gain=1).tolist())
    print(mode, file=sys.stderr)
"""
    environment = {**os.environ, "STYLEGAN_OPS": "auto", "PATH": str(tmp_path)}
    environment.pop("CXX", None)
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[[1.0, 1.0]]\n" * 3
    off, warning, *others = result.stderr.splitlines()
    assert (off, others) == ("off", ["None", "None"]) and "no working C++ compiler" in warning
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())
