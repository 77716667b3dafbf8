"""Digits without labels: what the noise levels have to do with classes that get lost. A table of docs/demo.md.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.unconditional [NAME ...] [--outdir=training-runs/unconditional]

Trains an unconditional generator, stopped early, and an unconditional teacher on the digits, with the loops that made
the built-in pair; both are kept in the folder, so that a second call begins with what follows. Then refines the
generator with the published method, at the paper's noise levels and at higher ones, everything else being equal, and
by the preset `tiny`, at the higher ones with the demo's rates; and counts what the detector takes the images for.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from refine import RunConfig, load_generator, load_teacher, run
from refine.digits.digits import Images, shipped_detector, shipped_split
from refine.digits.figures import NEAREST, Figures, Sampler, figures, generator_sampler, sample, teacher_sampler
from refine.digits.make.__main__ import save_gan, save_teacher
from refine.digits.make.gan import GanOptions, train_gan
from refine.digits.make.teacher import TeacherOptions, train_teacher
from refine.presets import PRESETS

SEED = 0
GAN = GanOptions(kimg=20, c_dim=0)
TEACHER = TeacherOptions(kimg=60, label_dim=0)
COMMON: dict[str, Any] = {"snap_ticks": 1000, "metrics": "none", "preflight": False, "device": "cpu"}
# The published method for 10 kimg; only the noise levels differ.
IKL: dict[str, Any] = {
    "objective": "ikl",
    "kimg": 10.0,
    "warmup_kimg": 2.0,
    "batch": 32,
    "tick_kimg": 2.0,
    "glr": 2e-3,
    "flr": 2e-3,
    "lr_rampup_kimg": 0.5,
    "ema_halflife_kimg": 1.0,
    "ema_rampup": None,
}
RUNS: dict[str, dict[str, Any]] = {
    f"IKL at {sigma}, 10 kimg": IKL | {"sigma": sigma, "fake_sigma": sigma}
    for sigma in ("lognormal:-1.2,1.2", "lognormal:1,1.2")  # the paper's, and ours where there are no labels
}
RUNS["SIM at lognormal:1,1.2, 50 kimg"] = PRESETS["tiny"].options_for(conditional=False) | {"kimg": 50.0}


@contextmanager
def said(what: str) -> Iterator[None]:
    """Prints the processor seconds of a block."""
    start = time.process_time()
    yield
    print(f"{what}: {time.process_time() - start:.0f} CPU s", flush=True)


def make_pair(folder: Path, gan: GanOptions = GAN, teacher: TeacherOptions = TEACHER) -> tuple[Path, Path]:
    """Pickles of the generator and the teacher, trained where they are not there yet."""
    images, paths = shipped_split("train"), (folder / "digits-uncond.pkl", folder / "edm-digits-uncond.pkl")
    folder.mkdir(parents=True, exist_ok=True)
    if not paths[0].exists():
        torch.manual_seed(SEED)
        with said(f"generator, {gan.kimg:g} kimg"):
            save_gan(train_gan(images, gan), paths[0])
    if not paths[1].exists():
        torch.manual_seed(SEED)
        with said(f"teacher, {teacher.kimg:g} kimg"):
            save_teacher(train_teacher(images, teacher), paths[1])
    return paths


def judged(sampler: Sampler, reals: Images, count: int) -> Figures:
    """The figures of images that were drawn without labels; agreement and variance within classes mean nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        images, classes = sample(lambda labels: sampler(labels[:, :0]), count)
    return figures(images, classes, reals, shipped_detector())


def entropy(shares: tuple[float, ...]) -> float:
    """Of the classes, as a share of the largest possible: 1 where all occur alike."""
    return -sum(share * math.log(share) for share in shares if share) / math.log(len(shares))


def row(name: str, found: Figures) -> str:
    """A line of the table."""
    cells = [name, f"{found.fid:.1f}"]
    cells += [f"{value:.2f}" for value in (found.precision, found.recall, found.coverage)]
    cells += [f"{entropy(found.class_shares):.3f}", f"{min(found.class_shares):.3f}"]
    cells += [" ".join(f"{100 * share:.0f}" for share in found.class_shares)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(RUNS), help=f"default: all of {', '.join(RUNS)}")
    parser.add_argument("--outdir", type=Path, default=Path("training-runs/unconditional"))
    parser.add_argument("--split", default="test", choices=("selection", "test"))
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.getLogger("refine").setLevel(logging.WARNING)
    gan, teacher = make_pair(args.outdir)
    reals = shipped_split(args.split)

    print(f"Digit-CNN features, not Inception; {args.samples} images, k = {NEAREST}; classes in percent, 0 to 9")
    print("| | FID | precision | recall | coverage | class entropy | rarest class | classes |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    start = load_generator(str(gan)).network
    print(row("the generator before refinement", judged(generator_sampler(start), reals, args.samples)), flush=True)
    for name in args.names:
        changes = RUNS[name] | COMMON | {"seed": args.seed}
        config = RunConfig(gan=str(gan), teacher=str(teacher), outdir=str(args.outdir), **changes)
        refined = load_generator(str(run(config))).network
        print(row(name, judged(generator_sampler(refined), reals, args.samples)), flush=True)
    denoiser: Any = load_teacher(str(teacher)).network
    print(row("the teacher", judged(teacher_sampler(denoiser), reals, min(args.samples, 2000))), flush=True)


if __name__ == "__main__":
    main()
