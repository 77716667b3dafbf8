"""The FID's value beside that of `scipy.linalg.sqrtm`, and the memory of precision and recall.

    python -m benchmarks.speed.fid

Two sets of 2048-dimensional statistics, whose variances fall over four decades as those of Inception features do. The
two ways take turns, and medians are compared. Precision and recall run on two sets of 20000 features of 2048
dimensions, in a process of its own; its memory is the growth of the peak resident set over that with both sets there.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import numpy as np
import scipy.linalg
import torch

from benchmarks import ROOT
from refine.metrics.fid import fid
from refine.metrics.moments import Moments
from refine.metrics.precision_recall import MAX_BLOCK_BYTES, precision_recall


def features(count: int, dimension: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    scales = np.geomspace(1, 1e-2, dimension).astype(np.float32)
    mix = np.random.default_rng(0).permutation(dimension)
    shift = draw.standard_normal(dimension, dtype=np.float32) * np.float32(0.01)
    made = np.empty((count, dimension), np.float32)
    for rows in np.array_split(made, max(count // 500, 1)):  # without a peak of memory
        x = draw.standard_normal(rows.shape, dtype=np.float32) * scales
        rows[:] = x + np.float32(0.3) * x[:, mix] + shift
    return made


def with_sqrtm(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    return float(np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root).real)


def compare_fid(count: int, dimension: int, runs: int) -> None:
    sets = [Moments.of(features(count, dimension, seed)) for seed in (1, 2)]
    arguments = [array for moments in sets for array in (moments.mean, moments.covariance())]
    ways = {"sqrtm": with_sqrtm, "refine": lambda *a: fid(*a).value}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values = {}
    for _ in range(runs):
        for name, way in ways.items():
            start = time.perf_counter()
            values[name] = way(*arguments)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"FID of two sets of {dimension}-dimensional statistics, {runs} runs of each, taking turns")
    print(f"scipy.linalg.sqrtm           {medians['sqrtm']:7.2f} s   {values['sqrtm']:.12f}")
    print(f"refine.metrics.fid           {medians['refine']:7.2f} s   {values['refine']:.12f}")
    off = abs(values["refine"] / values["sqrtm"] - 1)
    print(f"ratio                        {medians['sqrtm'] / medians['refine']:7.1f}x  relative difference {off:.1e}")


def measure_precision_recall(count: int, dimension: int) -> None:
    import resource

    torch.set_num_threads(1)
    real, generated = features(count, dimension, 1), features(count, dimension, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = precision_recall(real, generated, 3)
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    bound = MAX_BLOCK_BYTES + real.nbytes + generated.nbytes
    print(f"Precision and recall of {count} and {count} features of {dimension} dimensions: {seconds:.0f} s")
    print(f"precision {found.precision:.4f}, recall {found.recall:.4f}")
    print(f"memory    +{grown / 1e6:.0f} MB; the bound is {bound / 1e6:.0f} MB: a copy of both sets, and the blocks")


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--count", type=int, default=20_000, help="features, for precision and recall")
    parser.add_argument("--precision-recall", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.precision_recall:
        measure_precision_recall(options.count, options.dimension)
        return
    compare_fid(3 * options.dimension, options.dimension, options.runs)
    sizes = [f"--count={options.count}", f"--dimension={options.dimension}"]
    command = [sys.executable, "-m", "benchmarks.speed.fid", "--precision-recall", *sizes]
    subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
