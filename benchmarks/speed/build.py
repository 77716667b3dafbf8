"""Time building the compiled operators, and what they add to the start of a process once they are built.

    python -m benchmarks.speed.build [--starts=9]

Builds go to a cache of their own, which is deleted. CPU time is that of all compilers together; the CUDA kernels are
compiled for sm_90 by each compiler that there is. A start is that of `import torch` and a first `upfirdn2d` on the CPU,
by the kernels or, with STYLEGAN_OPS=off, by plain PyTorch; both take turns.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import ROOT

BUILDS = {
    "CPU library": "build.cpu_library()",
    "CUDA kernels, NVRTC": "build.nvrtc.find() or sys.exit('there is none'); build.cuda_image('sm_90')",
    "CUDA kernels, nvcc": "build.nvrtc.find = lambda: None; build.cuda_image('sm_90')",
}
START = """
import torch
from stylegan_ops.upfirdn2d import setup_filter, upsample2d
upsample2d(torch.ones(1, 3, 4, 4), setup_filter([1, 3, 3, 1]))
"""


def run(code: str, cache: str, mode: str = "on") -> tuple[float, float]:
    """Seconds on the clock and of CPU time that a Python process takes for `code`."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"STYLEGAN_OPS_CACHE": cache, "STYLEGAN_OPS": mode, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        raise RuntimeError(result.stderr.strip().splitlines()[-1])
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=9, help="how often processes start in both ways")
    options = parser.parse_args()
    imports = "import sys, torch; from stylegan_ops import build"
    with tempfile.TemporaryDirectory() as cache:
        wall, cpu = run(imports, cache)
        print(f"{'seconds':<24} {'clock':>7} {'CPU':>7}")
        for name, code in BUILDS.items():
            try:
                total_wall, total_cpu = run(f"{imports}; {code}", cache)
            except RuntimeError as error:
                print(f"{name:<24} {error}")
            else:
                print(f"{name:<24} {total_wall - wall:7.1f} {total_cpu - cpu:7.1f}", flush=True)
        starts: dict[str, list[float]] = {"on": [], "off": []}
        for _ in range(options.starts + 1):
            for mode, seconds in starts.items():
                seconds.append(run(START, cache, mode)[1])
        kernels, plain = (statistics.median(seconds[1:]) for seconds in starts.values())  # The first ones warm up.
        print(f"\nCPU seconds of a start  {kernels:.2f} with the kernels, {plain:.2f} without: {kernels - plain:+.2f}")


if __name__ == "__main__":
    main()
