"""What a run on the digits pair is judged by: the figures of `figures.py` as rows of a metric.

`python -m refine.digits.judge RUNDIR` measures the snapshots of a run on the test images, beside the metrics that any
run can have: do the images show what was asked for, is there variety within classes, is any class lost. It then
writes the run's report.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image, ImageOps

from refine import load_gan
from refine.commands.base import Command
from refine.digits.digits import shipped_detector, shipped_split
from refine.digits.figures import figures, generator_sampler, sample
from refine.errors import UserError
from refine.files.atomic import atomic_write
from refine.report import write_report

Measure = Callable[[torch.nn.Module, str], list[dict[str, Any]]]


def digits_measure(split: str = "test", count: int = 5000, seed: int = 0) -> Measure:
    """For `run(config, evaluate=...)`: measures a snapshot's moving average.

    Args:
        split: the real images to compare with, "selection" or "test".
        count: images that are drawn, the classes in turn.
        seed: of their latents and noise, the same for every snapshot.

    Returns:
        A function from a generator and its snapshot's name to one row for `metric-digits<count>_<split>.jsonl`.
    """
    detector, reals = shipped_detector(), shipped_split(split)
    name = f"digits{count}_{split}"

    def measure(generator: torch.nn.Module, snapshot: str) -> list[dict[str, Any]]:
        start = time.time()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            images, classes = sample(generator_sampler(generator), count)
        found = asdict(figures(images, classes, reals, detector))
        shares = found.pop("class_shares")
        seconds = time.time() - start
        row = {
            "results": {f"{key}_{name}": value for key, value in found.items()},
            "metric": name,
            "total_time": seconds,
            "total_time_str": f"{seconds:.0f}s",
            "num_gpus": 1,
            "snapshot_pkl": snapshot,
            "timestamp": time.time(),
            "provenance": {
                "detector": "digits-detector.pt (digit-CNN features, not Inception)",
                "data": f"digits-{split}.zip",
                "num_images": count,
                "seed": seed,
                "class_shares": list(shares),
            },
        }
        return [row]

    return measure


def judge(folder: Path, split: str = "test", count: int = 5000) -> list[dict[str, Any]]:
    """Measures all snapshots of a run, and writes `metric-digits<count>_<split>.jsonl` and `report.html`.

    Returns:
        The rows, by kimg.

    Raises:
        UserError: the folder holds no snapshots, or they are not of 16x16 grey digits.
    """
    paths = sorted(folder.glob("network-snapshot-*.pkl"))
    if not paths:
        raise UserError(f"{folder} holds no network-snapshot-*.pkl: give the folder of a run.")
    measure = digits_measure(split, count)
    rows = []
    for path in paths:
        network: Any = load_gan(str(path)).network
        if (network.img_resolution, network.img_channels, network.c_dim) != (16, 1, 10):
            raise UserError(f"{path} does not draw 16x16 grey images of ten classes: judge runs on the digits pair.")
        rows += measure(network, path.name)
    with atomic_write(folder / f"metric-{rows[0]['metric']}.jsonl") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    write_report([folder])
    draw_before_and_after(folder)
    return rows


def draw_before_and_after(folder: Path, zoom: int = 3, gap: int = 8) -> Path | None:
    """Puts the grids of fakes before the first step and after the last one side by side, the same latents in both.

    Args:
        folder: of a run.
        zoom: pixels of the picture for each pixel of a fake, along either axis.
        gap: white pixels between the two.

    Returns:
        `before-after.png` in that folder; None: there are no grids.
    """
    before, later = folder / "fakes_init.png", sorted(folder.glob("fakes[0-9]*.png"))
    if not before.exists() or not later:
        return None
    return side_by_side([before, later[-1]], folder / "before-after.png", zoom, gap)


def side_by_side(pictures: Sequence[Path], path: Path, zoom: int = 3, gap: int = 8) -> Path:
    """Puts grey pictures of one height into one PNG, enlarged, with a white gap between them."""
    grids = [ImageOps.scale(Image.open(p).convert("L"), zoom, Image.Resampling.NEAREST) for p in pictures]
    picture = Image.new("L", (sum(grid.width + gap for grid in grids) - gap, grids[0].height), 255)
    left = 0
    for grid in grids:
        picture.paste(grid, (left, 0))
        left += grid.width + gap
    with atomic_write(path) as file:
        picture.save(file, "PNG")
    return path


@click.command(cls=Command)
@click.argument("rundir", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["test", "selection"]), default="test", help="What to compare with.")
@click.option("--samples", type=click.IntRange(min=100), default=5000, show_default=True, help="Images to draw.")
def main(rundir: Path, split: str, samples: int) -> None:
    """Measure the snapshots of a run on the digits pair with digit-CNN features, and write its report.

    RUNDIR is a run's folder, or training-runs/latest for the newest one in training-runs.
    """
    if rundir.name == "latest" and not rundir.exists():
        folders = sorted(rundir.parent.glob("[0-9]*-*"))
        if not folders:
            raise UserError(f"There is no run in {rundir.parent}.")
        rundir = folders[-1]
    print_judgement(rundir, split, samples)


def print_judgement(rundir: Path, split: str = "test", samples: int = 5000) -> None:
    """Judges a run as `judge` does, and prints a line for each snapshot."""
    for row in judge(rundir, split, samples):
        figures_of = {name.split("_")[0]: value for name, value in row["results"].items()}
        click.echo(row["snapshot_pkl"] + " " + " ".join(f"{name} {value:.3g}" for name, value in figures_of.items()))
    click.echo(f"Digit-CNN features, not Inception. Report: {rundir / 'report.html'}, picture: before-after.png there")


if __name__ == "__main__":
    main(prog_name="python -m refine.digits.judge")
