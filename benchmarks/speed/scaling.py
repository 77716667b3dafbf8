"""Cost of a step by resolution, batch, size of the teacher and processes, and projected cost of runs on GPUs.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.scaling [--rounds=3]

First come measured steps of small networks with random weights on this machine's CPU: medians of CPU seconds, and of
several processes (gloo, one thread each) of seconds on the clock. Then the operations of one image are counted in the
networks that published runs have, and GPU-hours follow from them and from the assumptions that are printed beside.
The series are with one generator pass for both updates, --share-forward=1; the projection is of the default, which has
one forward pass more.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.speed import projection
from benchmarks.speed.steps import PUBLISHED, Size, networks, seconds, shipped
from refine.runtime import distributed
from refine.training.profiling import Ceilings, Counter

CPU = torch.device("cpu")
BASE = Size(32, 0, 3, (128, 2, 2048, 64), (32, (1, 2), 2), 4)
SERIES: dict[str, list[tuple[str, Size]]] = {
    "resolution": [(f"{pixels} pixels", BASE._replace(resolution=pixels)) for pixels in (16, 32, 64)],
    "batch": [(f"{batch} images", BASE._replace(batch=batch)) for batch in (1, 2, 4, 8, 16)],
    "teacher": [(f"{width} channels", BASE._replace(teacher=(width, (1, 2), 2))) for width in (16, 32, 64)],
}
GLOBAL_BATCH = BASE._replace(batch=8)  # shared by all processes


def print_series(rounds: int) -> None:
    for name, entries in SERIES.items():
        print(f"\n{name:<16} {'ms per image':>13} {'GFLOP per image':>16} {'GFLOP/s':>8}")
        for label, size in entries:
            step = shipped(size, CPU, share_forward=True)
            step()
            with Counter(Ceilings()) as counter:
                step()
            flop = counter.total.flop / size.batch
            median = statistics.median(seconds(step, CPU) for _ in range(rounds)) / size.batch
            print(f"{label:<16} {median * 1e3:13.1f} {flop / 1e9:16.2f} {flop / 1e9 / median:8.1f}", flush=True)


def print_processes(rounds: int) -> None:
    print(f"\n{'processes':<16} {'ms per image':>13} {'speed':>6}   one batch of {GLOBAL_BATCH.batch}, on the clock")
    first = 0.0
    for count in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}"]
        command += ["-m", "benchmarks.speed.scaling", "--worker", f"--rounds={rounds}"]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        median = float(done.stdout.split()[-1])
        first = first or median
        print(f"{count:<16} {median / GLOBAL_BATCH.batch * 1e3:13.1f} {first / median:5.2f}x", flush=True)


def work_as_one_process(rounds: int) -> None:
    with distributed.processes("gloo"):
        step = shipped(GLOBAL_BATCH, CPU, share_forward=True)
        step()
        times = []
        for _ in range(max(rounds, 5)):
            distributed.barrier()
            start = time.perf_counter()
            step()
            distributed.barrier()
            times.append(time.perf_counter() - start)
        if distributed.is_rank0():
            print(statistics.median(times))


def forward_flop(network: Any) -> float:
    """Operations of a forward pass with one image."""
    with torch.no_grad(), Counter(Ceilings()) as counter:
        if hasattr(network, "synthesis"):
            network(torch.randn(1, network.z_dim), torch.zeros(1, network.c_dim))
        else:
            network(torch.randn(1, 3, network.img_resolution, network.img_resolution), torch.ones(1))
    return counter.total.flop


def counted(name: str) -> projection.Forward:
    """Operations of the networks of a published pair."""
    return projection.Forward(*(round(forward_flop(network) / 1e9, 1) for network in networks(PUBLISHED[name])))


def print_projection() -> None:
    print(
        f"\n{'GFLOP per image':<20} {'generator':>10} {'teacher':>8} {'step':>7}   "
        f"H100-hours for {projection.KIMG} kimg"
    )
    print(f"{'':<20} {'forward':>10} {'forward':>8} {'':>7}   {'on one':>13} {'on eight':>15}")
    for name, recorded in projection.PAIRS.items():
        forward = counted(name)
        if forward != recorded:
            print(f"{name}: projection.py has {recorded}, which is out of date")
        hours, step = projection.hours(name), projection.step_gflop(name)
        eight = [hour / projection.EIGHT for hour in hours]
        print(
            f"{name:<20} {forward.generator:10.1f} {forward.teacher:8.1f} {step:7.0f}   "
            f"{hours[0]:5.1f} to {hours[1]:5.1f} {eight[0]:6.2f} to {eight[1]:5.2f}",
            flush=True,
        )
    low, high = projection.UTILIZATION
    print(
        f"Assumed: {low:.0%} to {high:.0%} of {projection.PEAK_BF16 / 1e12:.0f} TFLOP/s (bf16, U-Nets) and of "
        f"{projection.PEAK_TF32 / 1e12:.0f} (TF32, generator); eight GPUs {projection.EIGHT:.1f} times one."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        work_as_one_process(options.rounds)
        return
    print_series(options.rounds)
    print_processes(options.rounds)
    print_projection()


if __name__ == "__main__":
    main()
