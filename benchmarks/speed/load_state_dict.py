"""Time and memory to load a teacher's state dict of 2 GB, beside plain `torch.load` of the same file.

    python -m benchmarks.speed.load_state_dict

The file has the tensors of guided-diffusion's network for ImageNet at 256 pixels, with random values. Every run is a
process of its own, so that peaks of memory are its own; the ways take turns, the file is in the page cache, and medians
are compared. Memory is the growth of the peak resident set over that of the process with everything imported.
`refine.load_teacher` scans and reads the file's pickle, infers the architecture, builds Refine's network and gives it
the weights, which have to be finite. The second of the other ways does the same without any check: it builds the
network, and gives it what `torch.load` returns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import ROOT

SETTINGS = "num_head_channels=64,attention_order=old,noise_schedule=linear"
WIDTH = 256
MULTIPLIERS = (1, 1, 2, 2, 4, 4)
WAYS = {
    "plain": "torch.load",
    "network": "torch.load, load_state_dict",
    "refine": "refine.load_teacher",
}


def network() -> Any:
    """Refine's network in the shape of guided-diffusion's for ImageNet at 256 pixels, on the default device."""
    from refine.networks.adm import ADMUNet, EpsilonDenoiser, completed
    from refine.networks.adm_settings import parse_settings
    from refine.networks.adm_state_dict import UNetShape

    shape = UNetShape(
        img_channels=3,
        out_channels=6,
        label_dim=1000,
        model_channels=WIDTH,
        emb_channels=4 * WIDTH,
        level_channels=tuple(WIDTH * each for each in MULTIPLIERS),
        attention=(False, False, False, True, True, True),
        num_blocks=2,
        adaptive_scale=True,
        planar_attention=False,
    )
    settings = completed(shape, parse_settings(SETTINGS))
    return EpsilonDenoiser(ADMUNet(shape, settings), shape, settings)


def write_file(path: Path) -> int:
    """Writes random tensors under guided-diffusion's names; returns their bytes."""
    import torch

    from refine.networks.adm_state_dict import sources

    with torch.device("meta"):
        unet = network().model
    shapes = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    state = {}
    for ours, theirs, convert in sources(unet, "old"):
        shape = shapes[ours][:: -1 if convert is torch.t else 1]
        if ".qkv." in theirs or ".proj_out." in theirs:  # convolutions of rows
            shape = shape[:3]
        state[theirs] = 0.02 * torch.randn(shape)
    torch.save(state, path)
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def _plain(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _into_network(path: Path) -> Any:
    from refine.networks.adm_state_dict import sources

    denoiser = network()
    unet, tensors = denoiser.model, _plain(path)
    state = {ours: convert(tensors[theirs]) for ours, theirs, convert in sources(unet, "old")}
    own = unet.state_dict()
    unet.load_state_dict({name: state.get(name, value).reshape(value.shape) for name, value in own.items()})
    return denoiser.eval().requires_grad_(False).state_dict()


def _refine(path: Path) -> Any:
    import refine

    return refine.load_teacher(str(path), settings=SETTINGS).network.state_dict()


def measure(way: str, path: Path) -> None:
    """Loads once, in this process, and prints seconds and bytes as JSON."""
    import resource

    import torch

    import refine.networks.loading

    assert refine.load_teacher  # imported before the clock starts
    torch.set_num_threads(1)
    load: Callable[[Path], Any] = {"plain": _plain, "network": _into_network, "refine": _refine}[way]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    result = load(path)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert len(result) > 100
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "cpu": cpu, "bytes": (peak - before) * 1024}))


def main() -> None:
    """Run all ways in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--write", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        print(write_file(Path(options.write)))
        return
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]))
        return

    def call(*args: str) -> str:
        # This process stays small: on Linux a child's peak memory begins at that of its parent.
        command = [sys.executable, "-m", "benchmarks.speed.load_state_dict", *args]
        return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "random.pt"))
        num_bytes = int(call("--write", path))
        print(f"Tensors of the state dict: {num_bytes / 1e6:.0f} MB, {options.runs} runs of each, taking turns")
        results: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.runs):
            for way in WAYS:
                results[way].append(json.loads(call("--measure", way, path)))
    medians = {
        way: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu", "bytes")}
        for way, runs in results.items()
    }
    print(f"{'':<28} {'wall':>8} {'CPU':>8}   {'peak memory':<12}")
    for way, title in WAYS.items():
        row = medians[way]
        print(f"{title:<28} {row['seconds']:6.2f} s {row['cpu']:6.2f} s   +{row['bytes'] / 1e6:.0f} MB")
    for other, title in (("plain", "ratio to torch.load"), ("network", "ratio to a loaded network")):
        ratios = {key: medians["refine"][key] / medians[other][key] for key in ("seconds", "cpu", "bytes")}
        print(f"{title:<28} {ratios['seconds']:6.2f}   {ratios['cpu']:6.2f}     {ratios['bytes']:.2f}")


if __name__ == "__main__":
    main()
