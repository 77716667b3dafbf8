"""Memory and time to open a snapshot of R3GAN of 2 GB, of which the generator is a seventh.

    python -m benchmarks.speed.load_r3gan

Such a snapshot is one pickle of `G_ema`, `G`, `D` and the optimizer states of both. Every run is a process of its own,
so that peaks of memory are its own; the ways take turns, the file is in the page cache, and medians are compared.
Memory is the growth of the peak resident set over that of the process with everything imported. `refine.load_generator`
scans the file and rebuilds `G_ema`; `pickle.load` reads all of it, into empty classes of the repository's names.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import ROOT

WIDTHS = (768,) * 4  # 32 pixels
WAYS = {"plain": "pickle.load of the file", "refine": "refine.load_generator"}


def snapshots() -> Any:
    """The tests' writer of such files."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    import r3gan_file

    return r3gan_file


def measure(way: str, path: Path) -> None:
    """Opens the file once, in this process, and prints seconds and bytes as JSON."""
    import pickle
    import resource

    import torch

    import refine
    import refine.networks.r3gan

    writer = snapshots()
    load = refine.load_generator
    torch.set_num_threads(1)
    with writer.repository():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, cpu = time.perf_counter(), time.process_time()
        if way == "refine":
            network: Any = load(str(path)).network
        else:
            with path.open("rb") as file:
                network = pickle.load(file)["G_ema"]
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    print(json.dumps({"seconds": seconds, "cpu": cpu, "bytes": (peak - before) * 1024, "generator": size}))


def main() -> None:
    """Run both ways in turn and print medians and the ratio to the generator's size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        writer = snapshots()
        writer.write(Path(options.write), writer.generator(WIDTHS, z_dim=512))
        return
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]))
        return

    def call(*args: str) -> str:
        # This process stays small: on Linux a child's peak memory begins at that of its parent.
        command = [sys.executable, "-m", "benchmarks.speed.load_r3gan", *args]
        return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network-snapshot.pkl")
        call("--write", str(path))
        results: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.runs):
            for way in WAYS:
                results[way].append(json.loads(call("--measure", way, str(path))))
        num_bytes, generator = path.stat().st_size, results["refine"][0]["generator"]
    print(f"File: {num_bytes / 1e6:.0f} MB, its generator: {generator / 1e6:.0f} MB, {options.runs} runs, taking turns")
    print(f"{'':<24} {'wall':>8} {'CPU':>8}   {'peak memory':<12} times the generator")
    for way, title in WAYS.items():
        row = {key: statistics.median(run[key] for run in results[way]) for key in ("seconds", "cpu", "bytes")}
        memory = f"+{row['bytes'] / 1e6:.0f} MB"
        print(f"{title:<24} {row['seconds']:6.2f} s {row['cpu']:6.2f} s   {memory:<12} {row['bytes'] / generator:.2f}")


if __name__ == "__main__":
    main()
