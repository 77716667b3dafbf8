"""A generator of twice its teacher's resolution, in small: 16-pixel digits and a teacher that sees 8 pixels.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.higher_resolution --outdir=FOLDER [NAME ...] [--seeds=0]

Trains the teacher, refines two generators with it by each of the settings named, and prints the table of
docs/higher-resolution.md: digit-CNN features, not Inception, at 16 pixels as the generator draws and at 8 as the
teacher sees. One generator is the built-in one, whose detail is noise; the other one is that after 8 kimg with the
built-in teacher, which sees all 16 pixels: its detail is right and its digits are not yet. Writes two pictures,
FOLDER/stopped-early.png and detail-right.png. What is in FOLDER already is measured and not made again. Settings are
chosen on the selection split; `--split=test` is for what is published.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine import RunConfig, load_generator, load_teacher, run
from refine.digits.digits import Images, shipped_detector, shipped_split
from refine.digits.figures import Figures, figures, generator_sampler, sample, teacher_sampler
from refine.digits.judge import first_images
from refine.digits.make.__main__ import save_teacher
from refine.digits.make.teacher import TeacherOptions, train_teacher
from refine.files.image_grid import side_by_side
from refine.pair.bridge import Bridge
from refine.pair.high_frequency import high_pass
from refine.pair.resize import resize

TEACHER_PIXELS = 8
TEACHER = TeacherOptions(kimg=150, resolution=TEACHER_PIXELS, channel_mult=(1, 2), num_blocks=2)
COMMON: dict[str, Any] = {
    "sigma": "lognormal:0.6,1.2",
    "fake_sigma": "lognormal:0.6,1.2",
    "glr": 5e-3,
    "flr": 5e-3,
    "lr_rampup_kimg": 0.5,
    "batch": 32,
    "warmup_kimg": 2.0,
    "ema_halflife_kimg": 1.0,
    "ema_rampup": None,
    "tick_kimg": 2.0,
    "snap_ticks": 1000,
    "metrics": "none",
    "preflight": False,
    "device": "cpu",
}
KIMG = 30.0
DETAIL_KIMG = 8.0
EARLY, DETAIL = "stopped early", "detail right"
VARIANTS: dict[str, dict[str, Any]] = {
    "frozen above 8": {"train_layers": "auto"},
    "frozen above 8, anchor 0.1": {"train_layers": "auto", "anchor": 0.1},
    "all": {"train_layers": "all"},
    "all, anchor 0.1": {"train_layers": "all", "anchor": 0.1},
}
TRIES = {
    f"{start}: {variant}": (start, changes)
    for start in (EARLY, DETAIL)
    for variant, changes in VARIANTS.items()
    if not (start == EARLY and "anchor" in changes)  # nothing worth holding
}
COLUMNS = {"FID at 16": "fid", "FID at 8": "small_fid", "recall": "recall", "coverage": "coverage"} | {
    "agreement": "agreement",
    "detail": "detail",
    "drift of image": "Drift/image",
    "drift of detail": "Drift/detail",
}


def reduced(images: Images) -> Images:
    """Images as the teacher sees them, by the bridge's own filter."""
    return Images(to_pixels(resize(images.x0, TEACHER_PIXELS)), images.classes)


def to_pixels(x0: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8."""
    return (x0 * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def make_teacher(path: Path) -> None:
    """Trains the teacher, unless it is there."""
    if path.exists():
        return
    torch.manual_seed(0)
    start = time.process_time()
    teacher = train_teacher(reduced(shipped_split("train")), TEACHER)
    save_teacher(teacher, path)
    print(f"Teacher trained in {time.process_time() - start:.0f} CPU s: {path}", flush=True)


class Judge:
    """Compares 16-pixel images with a split of the real ones, at both resolutions."""

    def __init__(self, split: str, count: int) -> None:
        self.reals, self.count, self.detector = shipped_split(split), count, shipped_detector()
        self.small_reals = reduced(self.reals)

    def of_generator(self, path: str) -> dict[str, float]:
        """The figures of a snapshot's moving average, for the same latents each time."""
        torch.manual_seed(0)
        return self.of_images(*sample(generator_sampler(load_generator(path).network), self.count))

    def of_images(self, pixels: Tensor, classes: Tensor) -> dict[str, float]:
        """The figures of images [N, 1, 16, 16] uint8."""
        images = Images(pixels, classes)
        found = figures(pixels, classes, self.reals, self.detector)
        small = self.small(reduced(images))
        detail = high_pass(images.x0, Bridge(TEACHER_PIXELS, 0)).square().mean().sqrt()
        return vars(found) | {"small_fid": small.fid, "detail": float(detail)}

    def small(self, images: Images) -> Figures:
        """The figures at the teacher's resolution."""
        return figures(images.pixels, images.classes, self.small_reals, self.detector)

    def of_teacher(self, path: Path) -> dict[str, float]:
        """The teacher's own figures, at its resolution."""
        torch.manual_seed(0)
        return vars(self.small(Images(*sample(teacher_sampler(load_teacher(str(path)).network), self.count))))


def refined(name: str, seed: int, folder: Path, **options: Any) -> Path:
    """The last snapshot of a run in the folder, made if it is not there."""
    desc = f"{name}-{options['kimg']:g}kimg-seed{seed}".translate({ord(letter): "_" for letter in " :,"})
    for done in folder.glob(f"*-{desc}/network-snapshot-*.pkl"):
        if moment_of(done) >= options["kimg"]:
            return done
    start = time.process_time()
    snapshot = run(RunConfig(outdir=str(folder), seed=seed, desc=desc, **(COMMON | options)))
    print(f"{name}, seed {seed}: {time.process_time() - start:.0f} CPU s", flush=True)
    return snapshot


def moment_of(snapshot: Path) -> float:
    """The kimg in a snapshot's name."""
    return float(snapshot.stem.rsplit("-", 1)[1].replace("_", "."))


def row(name: str, values: dict[str, float]) -> str:
    """A line of the table."""
    digits = {"fid": 1, "small_fid": 1, "recall": 2, "coverage": 2, "agreement": 2}
    cells = [f"{values[key]:.{digits.get(key, 3)}f}" if key in values else "" for key in COLUMNS.values()]
    return f"| {' | '.join([name, *cells])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(TRIES), help=f"default: all of {', '.join(TRIES)}")
    parser.add_argument("--outdir", type=Path, required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--split", default="selection", choices=("selection", "test"))
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--kimg", type=float, default=KIMG)
    args = parser.parse_args()
    logging.getLogger("refine").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    args.outdir.mkdir(parents=True, exist_ok=True)
    teacher = args.outdir / "edm-digits-8px.pkl"
    make_teacher(teacher)
    # The pickles that are refined; the second one by the teacher that sees all pixels.
    starts = {EARLY: "digits"}
    if any(TRIES[name][0] == DETAIL for name in args.names):
        starts[DETAIL] = str(refined(DETAIL, 0, args.outdir, gan="digits", teacher="edm-digits", kimg=DETAIL_KIMG))
    judge, lines = Judge(args.split, args.samples), []
    real = shipped_split("train")
    shuffled = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    lines.append(row("real training images", judge.of_images(real.pixels[shuffled], real.classes[shuffled])))
    of_teacher = judge.of_teacher(teacher)
    lines.append(row("the teacher, at 8", {"small_fid": of_teacher["fid"], "agreement": of_teacher["agreement"]}))
    for start, gan in starts.items():
        lines.append(row(start, judge.of_generator(gan)))
        names = [name for name in args.names if TRIES[name][0] == start]
        grids: list[Path] = []  # before, and after without an anchor
        for name, seed in itertools.product(names, map(int, args.seeds.split(","))):
            changes = TRIES[name][1]
            snapshot = refined(name, seed, args.outdir, gan=gan, teacher=str(teacher), kimg=args.kimg, **changes)
            last = json.loads((snapshot.parent / "stats.jsonl").read_text(encoding="utf-8").splitlines()[-1])
            drifts = {key: last[key] for key in ("Drift/image", "Drift/detail")}
            lines.append(row(f"{name}, seed {seed}", judge.of_generator(str(snapshot)) | drifts))
            if "anchor" not in changes:
                grids += [] if grids else [snapshot.parent / "fakes_init.png"]
                grids.append(sorted(snapshot.parent.glob("fakes[0-9]*.png"))[-1])
        if grids:
            side_by_side([first_images(path) for path in grids]).save(args.outdir / f"{start.replace(' ', '-')}.png")
    print(f"\nDigit-CNN features, not Inception; {args.samples} images against the {args.split} split")
    print(f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}", *lines, sep="\n")


if __name__ == "__main__":
    main()
