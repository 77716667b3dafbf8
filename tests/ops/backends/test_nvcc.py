"""The CUDA kernels compiled by nvcc, for machine code and for PTX; docs/kernels.md says what they use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.speed import kernel_table
from stylegan_ops import build
from stylegan_ops.build import nvrtc, toolchain

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'tiled' for 'sm_80'
ptxas info    : Function properties for tiled
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem, 456 bytes cmem[0]
ptxas info    : Compile time = 530.232 ms
ptxas info    : Compiling entry function 'plain' for 'sm_80'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers, 456 bytes cmem[0]
"""


def test_report_of_the_assembler() -> None:
    tiled, plain = kernel_table.Usage(48, 20, 1024), kernel_table.Usage(30, 0, 0)
    assert kernel_table.parse_usage(REPORT) == {"tiled": tiled, "plain": plain}


def test_table_lists_every_kernel() -> None:
    text = kernel_table.DOCUMENT.read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` ", text.split(kernel_table.BEGIN)[1], flags=re.MULTILINE)
    assert listed == sorted(kernel_table.planned_kernels())
    assert len(listed) == 60


@pytest.fixture(scope="module")
def nvcc() -> toolchain.Compiler:
    compiler = toolchain.find_nvcc()
    if compiler is None:
        pytest.skip("there is no nvcc")
    return compiler


@pytest.mark.slow
def test_no_kernel_spills_registers(nvcc: toolchain.Compiler) -> None:
    usage = kernel_table.nvcc_usage(nvcc)
    for kernels in usage.values():
        assert kernels.keys() == kernel_table.planned_kernels().keys()
        assert {name: kernel for name, kernel in kernels.items() if kernel.spilled_bytes} == {}
        # 256 threads share 65536 registers and, unless the launch asks for more, 48 KiB of shared memory.
        assert max(kernel.registers for kernel in kernels.values()) <= 256
    assert max(kernel_table.planned_kernels().values()) <= 48 * 1024
    table = kernel_table.table(nvcc.version, usage)
    text = kernel_table.DOCUMENT.read_text(encoding="utf-8")
    if nvcc.version not in text:
        pytest.skip(f"the table of docs/kernels.md is by another compiler than {nvcc.version}")
    assert table in text, "docs/kernels.md is out of date: run `python -m benchmarks.speed.kernel_table`"


@pytest.mark.slow
def test_ptx_for_later_architectures(nvcc: toolchain.Compiler, tmp_path: Path) -> None:
    kernel_table.compile_kernels(nvcc, "compute_80", tmp_path / "kernels.ptx")
    ptx = (tmp_path / "kernels.ptx").read_text(encoding="utf-8")
    assert set(re.findall(r"\.entry (\w+)\(", ptx)) == kernel_table.planned_kernels().keys()
    kernels = dict(re.findall(r"\.entry (\w+)\((.*?)^}", ptx, flags=re.MULTILINE | re.DOTALL))
    for name, code in kernels.items():
        if name.startswith("bias_act"):
            access = "v2.f64" if name.endswith("f64") else "v4."
            assert f"ld.global.{access}" in code, name
            assert f"st.global.{access}" in code, name


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "compute_80"])
def test_nvrtc(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if nvrtc.find() is None:
        pytest.skip("there is no NVRTC")
    monkeypatch.setenv("STYLEGAN_OPS_CACHE", str(tmp_path))
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    image = build.cuda_image(arch).read_bytes()
    for name in kernel_table.planned_kernels():
        assert name.encode() in image
