"""Write the table of docs/kernels.md: registers, spilled bytes and shared memory of every CUDA kernel.

    python -m benchmarks.speed.kernel_table

nvcc compiles the kernels for each architecture and says what they use; no GPU is needed. What a launch adds in dynamic
shared memory comes from the launch plans.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from stylegan_ops import build
from stylegan_ops.backends import cuda, packing
from stylegan_ops.build import toolchain

DOCUMENT = ROOT / "docs" / "kernels.md"
ARCHITECTURES = ("sm_80", "sm_90")
BEGIN, END = "<!-- written by benchmarks/speed/kernel_table.py -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Usage:
    """Resources of a kernel, as the assembler reports them.

    Attributes:
        registers: of a thread.
        spilled_bytes: Bytes of registers spilled to memory.
        shared_bytes: of a block, without what the launch adds.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int


def compile_kernels(nvcc: toolchain.Compiler, arch: str, output: Path, csrc: Path = build.CSRC) -> str:
    """Compile for "sm_90" to machine code or for "compute_90" to PTX; returns what nvcc printed."""
    kind = "-cubin" if arch.startswith("sm") else "-ptx"
    source = csrc / "cuda" / "kernels.cu"
    options = ["-std=c++17", "-Xptxas=-v", "-Werror=all-warnings", kind, f"-arch={arch}", "-o", str(output)]
    command = [*nvcc.command, *options, str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{nvcc.command[0]} cannot compile the kernels for {arch}:\n{result.stderr}")
    return result.stderr


def parse_usage(output: str) -> dict[str, Usage]:
    """Usage of each kernel, by its name, from what `-Xptxas=-v` prints."""
    usage = {}
    for part in output.split("Compiling entry function ")[1:]:
        name = part.split("'")[1]
        registers = re.search(r"Used (\d+) registers", part)
        spilled = [int(count) for count in re.findall(r"(\d+) bytes spill", part)]
        shared = re.search(r"(\d+) bytes smem", part)
        assert registers and len(spilled) == 2, part
        usage[name] = Usage(int(registers[1]), sum(spilled), int(shared[1]) if shared else 0)
    return usage


def nvcc_usage(nvcc: toolchain.Compiler) -> dict[str, dict[str, Usage]]:
    """Architecture -> kernel -> usage."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "kernels.cubin"
        return {arch: parse_usage(compile_kernels(nvcc, arch, output)) for arch in ARCHITECTURES}


def planned_kernels() -> dict[str, int]:
    """The kernels that can be planned, and the bytes of dynamic shared memory that they are given."""
    plans = []
    for dtype in packing.DTYPES:
        plans += [cuda.plan_bias_act(order, dtype, 1) for order in (packing.VALUE, packing.GRAD, packing.GRAD2)]
        plans.append(cuda.plan_upfirdn2d(dtype, False, 1, 1, 8, 8, 8, 8, 1, 1, 1, 1, 1, 1, 0, 0))
        for (up, down, taps), tiles in cuda.TILES.items():
            plans += [cuda.plan_tiles(dtype, tile, up, down, taps, 1, 8, 8, 0, 0).launch for tile in tiles]
        # The layer of StyleGAN3 that its blocks keep most of: four steps of the grid to a pixel, and back.
        call = packing.FilteredLrelu((1, 1, 148, 148), (24,), (12,), 4, 2, (9, 8, 9, 8), 1.0, 0.2, 256.0, False)
        filtered = [cuda.plan_filtered_lrelu(order, dtype, call) for order in range(3)]
        plans.append(max((plan[0] for plan in filtered if plan), key=lambda plan: plan.shared_bytes))
    return {plan.kernel: plan.shared_bytes for plan in plans}


def table(version: str, usage: dict[str, dict[str, Usage]]) -> str:
    """The Markdown between BEGIN and END, with both."""
    planned = planned_kernels()
    columns = [f"Registers, {arch}" for arch in usage]
    rows = [["Kernel", *columns, "Spilled bytes", "Shared bytes"], ["---", *["---:"] * (len(usage) + 2)]]
    for name in sorted(planned):
        used = [kernels[name] for kernels in usage.values()]
        shared = max(kernel.shared_bytes for kernel in used) + planned[name]
        spilled = max(kernel.spilled_bytes for kernel in used)
        rows.append([f"`{name}`", *(str(kernel.registers) for kernel in used), str(spilled), str(shared)])
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    return "".join([BEGIN, f"By {version}.\n\n", *lines, END])


def main() -> None:
    nvcc = toolchain.find_nvcc()
    if nvcc is None:
        raise SystemExit("there is no nvcc: install the CUDA toolkit, or let CUDA_HOME name it")
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    DOCUMENT.write_text(before + table(nvcc.version, nvcc_usage(nvcc)) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
