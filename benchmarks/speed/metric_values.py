"""Time and memory of metrics' values from features that are there: 50,000 of 1024 dimensions, as DINOv2 gives them.

    python -m benchmarks.speed.metric_values
    python -m benchmarks.speed.metric_values --parts=cmmd,density --count=20000

Each part runs in a process of its own, with one thread. Its memory is the growth of the peak resident set over that
with both sets of features there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks import ROOT
from benchmarks.speed.fid import features
from refine.metrics import cmmd, copies, density_coverage, fid_interval, frechet_distance, kid, kid_interval
from refine.metrics.cmmd import normalized
from refine.metrics.moments import Moments, MomentsBuilder

REPETITIONS = 10


def frechet(real: np.ndarray, generated: np.ndarray) -> object:
    both = []
    for rows in (real, generated):
        builder = MomentsBuilder()
        for part in torch.from_numpy(rows).split(64):
            builder.add(part)
        both.append(builder.build())
    assert both[0] is not None and both[1] is not None
    return frechet_distance(both[0], both[1])


def interval_of_frechet(real: np.ndarray, generated: np.ndarray) -> object:
    return fid_interval(Moments.of(real[:20_000]), generated, repetitions=REPETITIONS)


PARTS: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], object]]] = {
    "frechet": ("Fréchet distance, with the moments of both sets", frechet),
    "frechet-interval": (f"its interval, {REPETITIONS} repetitions", interval_of_frechet),
    "kid": ("KID, 100 subsets of 1000", lambda x, y: kid(x, y)),
    "kid-interval": (
        f"its interval, {REPETITIONS} repetitions",
        lambda x, y: kid_interval(x, y, repetitions=REPETITIONS),
    ),
    "copies": ("near copies", lambda x, y: copies(x, y)),
    "density": ("density and coverage, k = 3", lambda x, y: density_coverage(x, y, 3)),
    "cmmd": ("CMMD", lambda x, y: cmmd(normalized(x), normalized(y))),
}


def measure(part: str, count: int, dimension: int) -> None:
    import resource

    torch.set_num_threads(1)
    real, generated = features(count, dimension, 1), features(count, dimension, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    title, work = PARTS[part]
    start = time.perf_counter()
    found = work(real, generated)
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"{title:48s} {count} x {dimension}: {seconds:7.1f} s, memory +{grown / 1e6:.0f} MB   {found}")


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=1024)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for part in options.parts.split(","):
        if options.here:
            measure(part, options.count, options.dimension)
            continue
        sizes = [f"--count={options.count}", f"--dimension={options.dimension}"]
        command = [sys.executable, "-m", "benchmarks.speed.metric_values", f"--parts={part}", "--here", *sizes]
        subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
