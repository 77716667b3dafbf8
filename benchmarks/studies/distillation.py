"""Tries settings of the distillation of the built-in teacher, and prints a row of docs/distilling.md's table for each.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.distillation [NAME ...] [--seeds=0,1,2] [--split=selection]

Settings are chosen on the selection split; `--split=test` is for what is published. The refined GAN of the demo is
among the names, for comparison at equal processor time.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from typing import Any

import torch

from benchmarks.studies.demo_settings import row, sigmas
from refine import RunConfig
from refine import run as refine
from refine.digits.digits import shipped_detector, shipped_split
from refine.digits.figures import Figures, figures, figures_of, sample, teacher_sampler
from refine.networks.loading import load_teacher
from refine.networks.preconditioned import as_denoiser
from refine.presets import PRESETS

WITHOUT: dict[str, Any] = {"metrics": "none", "data": None, "detector": None, "snap_ticks": 1000, "device": "cpu"}
TRIES: dict[str, dict[str, Any]] = {
    "demo": {},
    "SiD, alpha 1": {"objective": "sid:alpha=1.0"},
    "SiD, alpha 1.2": {"objective": "sid:alpha=1.2"},
    "sigma_init 1": {"sigma_init": 1.0},
    "sigma_init 80": {"sigma_init": 80.0},
    "with dropout": {"gan_dropout": True},
    "without warm-up": {"warmup_kimg": 0.0},
    "at the paper's sigma": sigmas("lognormal:-1.2,1.2"),
    "refined GAN": {"gan": "digits", "preset": "digits"},
}


def run(changes: dict[str, Any], seed: int, split: str, count: int, **more: Any) -> tuple[list[Figures], float]:
    """The figures before and after, and the processor seconds of the run without measuring."""
    spent, found = 0.0, []

    def timed(generator: torch.nn.Module, snapshot: str) -> list[dict[str, Any]]:
        nonlocal spent
        start = time.process_time()
        found.append(figures_of(generator, split, count))
        spent += time.process_time() - start
        return []

    preset = changes.get("preset", "distill-digits")
    options = {**PRESETS[preset].options, **WITHOUT, **changes, "preset": None, **more}
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(teacher="edm-digits", outdir=folder, seed=seed, preflight=False, **options)
        start = time.process_time()
        refine(config, evaluate=timed)
        return found, time.process_time() - start - spent


def teacher_row(split: str, count: int) -> str:
    """The row of the teacher: 18 steps of Heun's method."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images, classes = sample(teacher_sampler(as_denoiser(load_teacher("edm-digits").network)), count)
    return row("teacher, 35 evaluations", figures(images, classes, shipped_split(split), shipped_detector()), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["demo"], help=f"default: demo; there are {', '.join(TRIES)}")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--split", default="selection", choices=("selection", "test"))
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--kimg", type=float, default=None)
    parser.add_argument("--teacher", action="store_true", help="print the teacher's row, too")
    args = parser.parse_args()
    logging.getLogger("refine").setLevel(logging.WARNING)
    print("| settings | FID | precision | recall | coverage | agreement | variance | rarest class | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    if args.teacher:
        print(teacher_row(args.split, args.samples), flush=True)
    start_shown = False
    for name in args.names:
        for seed in map(int, args.seeds.split(",")):
            more = {} if args.kimg is None else {"kimg": args.kimg}
            found, seconds = run(TRIES[name], seed, args.split, args.samples, **more)
            if not start_shown:
                print(row("the generator at the start", found[0], None))
                start_shown = True
            print(row(f"{name}, seed {seed}", found[-1], seconds), flush=True)


if __name__ == "__main__":
    main()
