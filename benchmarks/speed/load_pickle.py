"""Time and memory to load a 250 MB generator, beside plain `pickle.load` of the same tensors.

    python -m benchmarks.speed.load_pickle

Every run is a process of its own, so that peaks of memory are its own; the two ways take turns, and medians are
compared. Memory is the growth of the peak resident set over that of the process with everything imported.
`load_gan` scans the file, reads it, builds Refine's generator and gives it the weights.
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import ROOT

GENERATOR = {
    "z_dim": 512,
    "c_dim": 0,
    "w_dim": 512,
    "img_resolution": 1024,
    "img_channels": 3,
    "synthesis_kwargs": {"channel_base": 65536, "channel_max": 728},
}


def write_network(generator: Any, init_kwargs: dict[str, Any], path: Path) -> None:
    """A network pickle in NVIDIA's layout, whose source is empty: Refine rebuilds the generator from its arguments."""
    import torch

    from torch_utils.persistence import _reconstruct_persistent_obj

    class Persistent:
        def __init__(self, module: torch.nn.Module, init_kwargs: dict[str, Any]) -> None:
            self.module, self.init_kwargs = module, init_kwargs

        def __reduce__(self) -> tuple[Any, ...]:
            state = {
                "_parameters": dict(self.module._parameters),
                "_buffers": dict(self.module._buffers),
                "_modules": {name: Persistent(child, {}) for name, child in self.module._modules.items()},
                "_init_args": (),
                "_init_kwargs": self.init_kwargs,
            }
            name = type(self.module).__name__
            meta = {"type": "class", "version": 6, "module_src": "#", "class_name": name, "state": state}
            return _reconstruct_persistent_obj, (meta,)

    with path.open("wb") as file:
        pickle.dump({"G_ema": Persistent(generator, init_kwargs)}, file, protocol=4)


def write_files(folder: Path) -> int:
    """A network pickle, and a plain pickle of its tensors; returns the bytes of the tensors."""
    from refine.networks.stylegan2 import generator_from_init_kwargs

    generator = generator_from_init_kwargs(GENERATOR, "ada").eval().requires_grad_(False)
    tensors = generator.state_dict()
    write_network(generator, GENERATOR, folder / "network.pkl")
    with (folder / "plain.pkl").open("wb") as file:
        pickle.dump(dict(tensors), file, protocol=4)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def measure(way: str, path: Path) -> None:
    """Loads once, in this process, and prints seconds and bytes as JSON."""
    import resource

    import torch

    import refine.networks.loading

    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if way == "refine":
        result: Any = refine.networks.loading.load_gan(str(path)).network.state_dict()
    else:
        with path.open("rb") as file:
            result = pickle.load(file)
    seconds = time.perf_counter() - start
    assert len(result) > 100
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "bytes": (peak - before) * 1024}))


def main() -> None:
    """Run both ways in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--write", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        print(write_files(Path(options.write)))
        return
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]))
        return

    def call(*args: str) -> str:
        # This process stays small: on Linux a child's peak memory begins at that of its parent.
        command = [sys.executable, "-m", "benchmarks.speed.load_pickle", *args]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    with tempfile.TemporaryDirectory() as folder:
        num_bytes = int(call("--write", folder))
        print(f"Tensors of the generator: {num_bytes / 1e6:.0f} MB, {options.runs} runs of each, taking turns")
        results: dict[str, list[dict[str, float]]] = {"refine": [], "plain": []}
        for _ in range(options.runs):
            for way, name in (("refine", "network.pkl"), ("plain", "plain.pkl")):
                results[way].append(json.loads(call("--measure", way, str(Path(folder, name)))))
    medians = {
        way: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "bytes")}
        for way, runs in results.items()
    }
    for way, title in (("plain", "pickle.load of the tensors"), ("refine", "refine.load_gan")):
        print(f"{title:<27} {medians[way]['seconds']:6.2f} s   peak memory +{medians[way]['bytes'] / 1e6:.0f} MB")
    ratios = {key: medians["refine"][key] / medians["plain"][key] for key in ("seconds", "bytes")}
    print(f"{'ratio':<27} {ratios['seconds']:6.2f}     {ratios['bytes']:.2f}")


if __name__ == "__main__":
    main()
