"""Part 1: the machine, what the doctor says, seconds to build the kernels by NVRTC and by nvcc, NCCL, ceilings."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu.setting import Setting, copy_bandwidth, matmul_flops
from benchmarks.speed.kernel_table import compile_kernels, parse_usage
from stylegan_ops import build, doctor
from stylegan_ops.build import nvrtc, toolchain

STAND_IN_ARCH = "sm_90"
STAND_IN_KERNEL = """extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2; }
"""


def examine(setting: Setting) -> None:
    """Everything that `python -m stylegan_ops.doctor --json` prints."""
    printed = io.StringIO()
    begun = time.perf_counter()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        doctor.main(["--json"], standalone_mode=False)
    report = json.loads(printed.getvalue())
    verdicts = [
        {name: verdict[name] for name in ("device", "applicable", "problem", "remedy", "seconds", "speedups")}
        | {"worst": max((c["error"] / c["tolerance"] for c in verdict["comparisons"]), default=None)}
        for verdict in report["verdicts"]
    ]
    findings = {finding["name"]: finding["value"] for finding in report["findings"]}
    setting.emit("doctor", ok=report["ok"], seconds=time.perf_counter() - begun, findings=findings, verdicts=verdicts)


def arch_of(setting: Setting) -> str:
    """Such as sm_90."""
    if setting.device.type != "cuda":
        return STAND_IN_ARCH
    major, minor = torch.cuda.get_device_capability(setting.device)
    return f"sm_{major}{minor}"


@contextlib.contextmanager
def sources(setting: Setting) -> Iterator[Path]:
    """The kernels, or one small kernel in their place."""
    if not setting.rehearse:
        yield build.CSRC
        return
    with tempfile.TemporaryDirectory() as folder:
        csrc = Path(folder)
        (csrc / "cuda").mkdir()
        (csrc / "abi.h").write_bytes((build.CSRC / "abi.h").read_bytes())
        (csrc / "cuda" / "kernels.cu").write_text(STAND_IN_KERNEL, encoding="utf-8")
        yield csrc


def time_builds(setting: Setting) -> None:
    """Seconds on the clock until each compiler has built all kernels, from an empty cache."""
    arch, find, cached = arch_of(setting), nvrtc.find, os.environ.get("STYLEGAN_OPS_CACHE")
    with sources(setting) as csrc, tempfile.TemporaryDirectory() as temporary:
        for name, hidden in (("NVRTC", None), ("nvcc", lambda: None)):
            os.environ["STYLEGAN_OPS_CACHE"] = str(Path(temporary) / name)
            try:
                if name == "NVRTC" and find() is None:
                    setting.emit("build", compiler=name, arch=arch, problem="there is no NVRTC")
                    continue
                nvrtc.find = hidden or find
                begun = time.perf_counter()
                image = build.cuda_image(arch, csrc)
                seconds = time.perf_counter() - begun
                setting.emit("build", compiler=name, arch=arch, seconds=seconds, bytes=image.stat().st_size)
            except build.BuildError as error:
                setting.emit("build", compiler=name, arch=arch, problem=str(error))
            finally:
                nvrtc.find = find
                os.environ.pop("STYLEGAN_OPS_CACHE")
                if cached is not None:
                    os.environ["STYLEGAN_OPS_CACHE"] = cached


def usage(setting: Setting) -> None:
    """Registers, spilled bytes and shared memory of each kernel, as nvcc's assembler reports them."""
    nvcc = toolchain.find_nvcc()
    if nvcc is None:
        setting.emit("usage", problem="there is no nvcc", kernels={})
        return
    with sources(setting) as csrc, tempfile.TemporaryDirectory() as temporary:
        printed = compile_kernels(nvcc, arch_of(setting), Path(temporary) / "kernels.cubin", csrc)
    kernels = {
        name: {"registers": used.registers, "spilled": used.spilled_bytes, "shared": used.shared_bytes}
        for name, used in parse_usage(printed).items()
    }
    setting.emit("usage", arch=arch_of(setting), kernels=kernels)


def processes(setting: Setting) -> None:
    """A group of one process, as `refine.runtime.distributed` makes it for several: NCCL, and gloo for signs."""
    import torch.distributed as dist

    backend = "gloo" if setting.rehearse else "nccl"
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        timeout = datetime.timedelta(seconds=60)
        store = f"file://{Path(folder) / 'store'}"
        dist.init_process_group(backend, init_method=store, rank=0, world_size=1, timeout=timeout)
        try:
            control = dist.new_group(backend="gloo", timeout=timeout)
            flat = torch.arange(1024, device=setting.device, dtype=torch.float32)
            dist.all_reduce(flat)
            flag = torch.tensor(1.0)
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=control)
            ok = bool(flag) and torch.equal(flat.cpu(), torch.arange(1024, dtype=torch.float32))
        finally:
            dist.destroy_process_group()
    setting.emit("processes", backend=backend, ok=ok, seconds=time.perf_counter() - begun)


def ceilings(setting: Setting) -> None:
    """Peak rates of the machine: matrix products by type, and a copy."""
    n, size = (128, 1 << 20) if setting.rehearse else (8192, 1 << 31)
    kinds = {"fp32": (torch.float32, False), "TF32": (torch.float32, True), "bf16": (torch.bfloat16, False)}
    rates = {name: matmul_flops(setting.device, dtype, tf32, n) for name, (dtype, tf32) in kinds.items()}
    setting.emit("ceilings", n=n, matmul=rates, copy=copy_bandwidth(setting.device, size))


def main() -> None:
    setting, _ = Setting.from_arguments()
    for work in (time_builds, examine, ceilings, processes, usage):
        with setting.section(work.__name__):
            work(setting)


if __name__ == "__main__":
    main()
