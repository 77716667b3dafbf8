"""Trajectory of distances in three feature spaces over a short run on the digits, with intervals, in the run's report.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.feature_spaces [--outdir=training-runs/feature-spaces]

The digits' own detector stands for Inception. DINOv2 and CLIP are tiny networks of the published layout with random
weights: they show that the distances move together and what the report makes of them, not what the published networks
would say. With `--dinov2=FILE` and `--clip=FILE`, it is those.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.studies.random_vision_transformers import clip_weights, dinov2_weights
from refine import RunConfig, run

METRICS = ("fid{}_full", "fd_dinov2_{}_full", "clip_fid{}_full", "cmmd{}", "kid{}_full", "copies{}_full")


def main() -> None:
    """Refine, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outdir", type=Path, default=Path("training-runs/feature-spaces"))
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--kimg", type=float, default=6.0)
    parser.add_argument("--bootstrap", type=int, default=20)
    parser.add_argument("--dinov2", type=Path)
    parser.add_argument("--clip", type=Path)
    options = parser.parse_args()
    options.outdir.mkdir(parents=True, exist_ok=True)
    files = {"dinov2": options.dinov2, "clip": options.clip}
    for role, make in (("dinov2", dinov2_weights), ("clip", clip_weights)):
        if files[role] is None:
            files[role] = options.outdir / f"random-{role}.pth"
            torch.save(make(width=64), files[role])
    names = [name.format(options.images) for name in METRICS]
    detectors = ",".join(["digits-detector.pt", *(f"{role}={path}" for role, path in files.items())])
    config = RunConfig.from_preset(
        "digits", gan="digits", teacher="edm-digits", outdir=str(options.outdir), kimg=options.kimg, warmup_kimg=1.0,
        tick_kimg=options.kimg / 8, snap_ticks=2, metrics=",".join(names), detector=detectors,
        bootstrap=options.bootstrap, device="cpu", preflight=False,
    )  # fmt: skip
    folder = run(config).parent
    for name in names:
        rows = [json.loads(line) for line in (folder / f"metric-{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        cells = []
        for row in rows:
            ends = row["provenance"].get("intervals", {}).get(name)
            cells.append(f"{row['results'][name]:.4g}" + (f" ({ends[0]:.4g} to {ends[1]:.4g})" if ends else ""))
        print(f"{name:24s} " + "   ".join(cells))
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    main()
