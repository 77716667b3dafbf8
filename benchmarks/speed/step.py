"""One refinement step: the released recipe written out plainly, against Refine as shipped.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.step [--sizes=digits,cifar,64] [--rounds=5] [--device=cuda]

Both run in one process on the same networks with random weights, with equal batches and threads, and take turns;
medians of the CPU time are compared (on a GPU, of the time on the clock), which other load on the machine changes less.
GFLOP counts the multiplications and additions of convolutions and matrix products as they are usually counted, and the
share of the ceiling is their rate divided by that of a large matrix product, measured in between. Peak memory is taken
in a fresh process for each: its peak over what it had with PyTorch alone, so with weights and moments.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import ROOT
from benchmarks.speed.steps import Size, baseline, gflop, networks, seconds, shipped

SIZES = {
    # The built-in pair.
    "digits": Size(16, 10, 1, (64, 4, 1024, 64), (16, (1, 2, 4), 1), 32),
    # StyleGAN2-ADA's `cifar` configuration; EDM's DDPM++ for CIFAR-10 at half its width.
    "cifar": Size(32, 0, 3, (512, 2, 32768, 512), (64, (2, 2, 2), 4), 8),
    # StyleGAN2-ADA's `auto` configuration at 64 pixels; EDM's DDPM++ for FFHQ-64 at half its width.
    "64": Size(64, 0, 3, (512, 2, 16384, 512), (64, (1, 2, 2, 2), 4), 4),
}


VARIANTS: dict[str, Callable[..., Callable[[], None]]] = {"plain": baseline, "refine": shipped}


def matmul_ceiling(device: torch.device) -> Callable[[], float]:
    """A function that measures the floating-point operations per second of a large product in float32."""
    n = 2048 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device)
    return lambda: 2 * n**3 / seconds(lambda: a @ a, device)


def peak_memory(name: str, variant: str, device: str) -> float:
    """MB that a few steps need, in a process of their own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed.step",
        "--sizes",
        name,
        "--device",
        device,
        "--memory-of",
        variant,
    ]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak_memory(name: str, variant: str, device: torch.device) -> None:
    """Main function of the process that `peak_memory` starts."""
    start = _peak_mb(device)
    networks(SIZES[name])
    step = VARIANTS[variant](SIZES[name], device)
    for _ in range(3):
        step()
    print(_peak_mb(device) - start)


def _peak_mb(device: torch.device) -> float:
    import resource

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # What getrusage says there includes the parent process until it started this one.
        return float(status.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def compare(name: str, rounds: int, device: torch.device) -> None:
    """Prints a table of one size."""
    size = SIZES[name]
    steps = {variant: make(size, device) for variant, make in VARIANTS.items()}
    memory = {variant: peak_memory(name, variant, device.type) for variant in steps}
    work = {}
    for variant, step in steps.items():
        step()
        work[variant] = gflop(step)
    ceiling = matmul_ceiling(device)
    ceilings: list[float] = []
    times: dict[str, list[float]] = {variant: [] for variant in steps}
    for _ in range(rounds):
        for variant, step in steps.items():
            times[variant].append(seconds(step, device))
            ceilings.append(ceiling())
    limit = statistics.median(ceilings)
    medians = {variant: statistics.median(values) for variant, values in times.items()}
    print(f"\n{name}: {size.resolution} pixels, batch {size.batch}; matrix product {limit / 1e9:.0f} GFLOP/s")
    print(
        f"{'':8} {'s/step':>8} {'img/s':>8} {'GFLOP':>7} {'of ceiling':>10} {'speed':>6} {'peak MB':>8} {'memory':>6}"
    )
    for variant, median in medians.items():
        print(
            f"{variant:8} {median:8.3f} {size.batch / median:8.2f} {work[variant]:7.1f} "
            f"{work[variant] * 1e9 / median / limit:10.0%} {medians['plain'] / median:5.2f}x "
            f"{memory[variant]:8.0f} {memory[variant] / memory['plain']:5.2f}x",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    for name in options.sizes.split(","):
        if options.memory_of:
            print_peak_memory(name, options.memory_of, device)
        else:
            compare(name, options.rounds, device)


if __name__ == "__main__":
    main()
