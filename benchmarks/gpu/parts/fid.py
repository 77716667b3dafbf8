"""Part 5: a FID's pipeline, images per second of a 256-pixel generator and a network of Inception's shape.

By `python -m refine metrics`, whose row says how long everything took, beside generator and detector alone at the batch
that the command found. The reference is a file of statistics, so that no data set is read.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.inception import InceptionLike
from benchmarks.gpu.setting import Setting, wall
from benchmarks.speed.load_pickle import write_network
from refine.commands import metrics
from refine.networks.stylegan2 import generator_from_init_kwargs

GENERATOR: dict[str, Any] = {
    "z_dim": 512,
    "c_dim": 0,
    "w_dim": 512,
    "img_resolution": 256,
    "img_channels": 3,
    "synthesis_kwargs": {"channel_base": 16384, "channel_max": 512, "conv_clamp": 256},
}
REHEARSED: dict[str, Any] = {
    "z_dim": 16,
    "c_dim": 0,
    "w_dim": 16,
    "img_resolution": 16,
    "img_channels": 3,
    "synthesis_kwargs": {"channel_base": 64, "channel_max": 8, "conv_clamp": 256},
}
IMAGES, REHEARSED_IMAGES = 10000, 300


def write_inputs(folder: Path, rehearse: bool) -> dict[str, Path]:
    """Generator, detector and statistics."""
    paths = {name: folder / file for name, file in (("network", "g.pkl"), ("detector", "d.pt"), ("ref", "ref.npz"))}
    torch.manual_seed(0)
    init_kwargs = REHEARSED if rehearse else GENERATOR
    write_network(generator_from_init_kwargs(init_kwargs, "ada").eval(), init_kwargs, paths["network"])
    detector = (InceptionLike(32, 75, 10) if rehearse else InceptionLike()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, which the suite's detectors are
        torch.jit.script(detector).save(str(paths["detector"]))
    features = int(detector.output.in_features)
    np.savez(paths["ref"], mu=np.zeros(features), sigma=np.eye(features))
    return paths


def measure_by_command(paths: dict[str, Path], count: int, device: torch.device) -> dict[str, Any]:
    """The row that the command prints."""
    printed = io.StringIO()
    given = [f"--{name}={path}" for name, path in paths.items()]
    with contextlib.redirect_stdout(printed):
        metrics.main([*given, f"--metrics=fid{count}_full", f"--device={device.type}"], standalone_mode=False)
    (row,) = [json.loads(line) for line in printed.getvalue().splitlines() if line.startswith("{")]
    return row


def alone(paths: dict[str, Path], batch: int, setting: Setting) -> dict[str, float]:
    """Images per second of generator and detector by themselves."""
    from refine.networks.loading import load_gan

    device = setting.device
    generator: Any = load_gan(str(paths["network"])).network.to(device)
    detector = torch.jit.load(str(paths["detector"]), map_location=device)
    z = torch.randn(batch, generator.z_dim, device=device)
    images = torch.randint(0, 256, (batch, 3, *[generator.img_resolution] * 2), dtype=torch.uint8, device=device)
    rates = {}
    with torch.no_grad():
        runs = {
            "generator": lambda: generator(z, None),
            "detector": lambda: detector(images, return_features=True),
        }
        for name, run in runs.items():
            wall(run, device, 2)
            rates[name] = batch / wall(run, device, 1 if setting.rehearse else 5)
    return rates


def main() -> None:
    setting, _ = Setting.from_arguments()
    count = REHEARSED_IMAGES if setting.rehearse else IMAGES
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_inputs(Path(temporary), setting.rehearse)
        for turn in ("first", "second"):
            with setting.section(f"fid, {turn}"):
                begun = time.perf_counter()
                row = measure_by_command(paths, count, setting.device)
                seconds = time.perf_counter() - begun
                batch = row["provenance"].get("batch")
                setting.emit(
                    "fid", turn=turn, images=count, seconds=seconds, row_seconds=row["total_time"], batch=batch
                )
        with setting.section("alone"):
            batch = 8 if setting.rehearse else 64
            setting.emit("alone", batch=batch, **alone(paths, batch, setting))


if __name__ == "__main__":
    main()
