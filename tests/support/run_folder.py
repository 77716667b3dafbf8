"""A run's folder as runs write it, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from refine.files.image_grid import save_grid

START = 1_800_000_000.0  # 2027-01-15 08:00 UTC


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def metric_row(name: str, kimg: int, **results: float) -> dict[str, Any]:
    return {
        "results": results,
        "metric": name,
        "total_time": 30.0,
        "num_gpus": 1,
        "snapshot_pkl": f"network-snapshot-{kimg:06d}.pkl",
        "timestamp": START + 100 + kimg,
    }


def grid_of(path: Path, gray: int, title: str = "") -> None:
    """Twenty images of 16 pixels, all of one gray."""
    save_grid(path, np.full([20, 1, 16, 16], gray, np.uint8), 10, title, [str(i) for i in range(10)])


def finished_run(folder: Path) -> Path:
    """A finished run of 20 kimg with a falling FID, whose last event is 130 s after its start."""
    folder.mkdir()
    options = {"gan": "digits", "teacher": "edm-digits", "preset": "digits", "kimg": 20.0, "batch": 32, "seed": 7}
    options |= {"share_forward": True, "glr": 2e-3, "sigma": "lognormal:0->0.3", "desc": None, "class_map": [0, 1]}
    (folder / "training_options.json").write_text(json.dumps(options))
    rows = []
    for tick in range(1, 6):
        row: dict[str, Any] = {"Progress/tick": tick, "Progress/kimg": 4.0 * tick, "Progress/num_nonfinite": 0}
        row |= {"Timing/total_sec": 30.0 + 20 * tick, "Timing/sec_per_tick": 12.0, "Timing/sec_per_kimg": 3.0}
        row |= {"Score/gap": 0.1 / tick, "Score/gap/sigma_0_0.1": 0.01 / tick, "Score/gap/sigma_6_inf": 0.3 / tick}
        row |= {"Loss/fake": 55.5, "Loss/fake/sigma_0.1_0.4": 44.5, "Drift/image": 0.25 * tick, "Novel/key": 3.5}
        rows.append(row | {"timestamp": START + 26 * tick})
    write_lines(folder / "stats.jsonl", rows)
    fids = {0: 345.678, 8: 120.0, 20: 34.5678}
    write_lines(
        folder / "metric-fid5k_full.jsonl", [metric_row("fid5k_full", k, fid5k_full=v) for k, v in fids.items()]
    )
    shares = {0: [0.5, 0.3, 0.2], 20: [0.34, 0.33, 0.33]}
    where = {"detector": {"name": "digits-detector.pt", "sha256": "ab"}, "num_images": 5000}
    digits = [
        metric_row("digits5k", kimg, digits5k_agreement=0.4 + kimg / 40)
        | {"provenance": where | {"class_shares": values}}
        for kimg, values in shares.items()
    ]
    write_lines(folder / "metric-digits5k.jsonl", digits)
    for kimg in (0, 20):
        (folder / f"network-snapshot-{kimg:06d}.pkl").touch()
    (folder / "network-best.pkl").touch()
    for name, gray in (("fakes_init", 40), ("fakes000008", 90), ("fakes000020", 200), ("reals", 120)):
        grid_of(folder / f"{name}.png", gray, name)
    session = {"timestamp": START, "refine": "0.1.0", "commit": "abc1234", "torch": "2.13.0", "python": "3.11.7"}
    session |= {
        "cpu": "Some CPU",
        "cores": 2,
        "device": "cpu",
        "gpu": None,
        "num_processes": 1,
        "sha256": {"gan": "ef" * 32},
    }
    write_lines(folder / "sessions.jsonl", [session])
    preflight = {"sigmas": [0.1, 1.0], "generator_loss": [0.5, 0.6], "teacher_loss": [0.1, 0.3], "warnings": []}
    (folder / "preflight.json").write_text(json.dumps(preflight | {"verdict": "No mismatch found."}))
    yardsticks = [
        {"name": "teacher", "note": "5000 samples", "results": {"fid5k_full": 14.125}},
        {"name": "real images", "results": {"fid5k_full": 14.375}},
    ]
    (folder / "yardsticks.json").write_text(json.dumps(yardsticks))
    (folder / "log.txt").write_text("Run directory: here\n")
    return folder
