"""Forms of a step, by the passes that both updates share, at equal CPU time on the built-in digits pair.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.sharing [--seconds=100] [--seeds=0,1,2] [FORM ...]

A fresh batch for each update costs five passes' worth of the U-Net and four of the generator; one generator forward
saves a pass of the generator, one U-Net forward saves one of the U-Net as well, and then both updates see the same
noise. First, steps of all forms take turns, and their median CPU times say how many images each form sees in the given
seconds (warm-up included, measuring not). Then every form is run for so many, with the preset of the digits otherwise.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from benchmarks.speed.steps import seconds, trainer_of_digits
from benchmarks.studies.demo_settings import COMMON, row, run
from refine.digits.figures import Figures

FORMS: dict[str, dict[str, Any]] = {
    "two forwards": {"share_forward": False, "share_unet": False},
    "one generator forward": {"share_forward": True, "share_unet": False},
    "one U-Net forward too": {"share_forward": True, "share_unet": True},
}
VARIANTS: dict[str, dict[str, Any]] = {
    # Not run unless named: without dropout, whose masks else reach the generator.
    "one U-Net forward too, no dropout": {"share_forward": True, "share_unet": True, "fake_dropout": False},
}


def costs(forms: dict[str, dict[str, Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """CPU seconds of a warm-up step and of a step, by name: medians of steps that take turns."""
    cpu = torch.device("cpu")
    trainers = {}
    for name, changes in forms.items():
        trainers[name] = trainer_of_digits(cpu, **(COMMON | changes))
        trainers[name].warm_up_step()
        trainers[name].step()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, trainer in trainers.items():
            times[name].append((seconds(trainer.warm_up_step, cpu), seconds(trainer.step, cpu)))
    return {
        name: (statistics.median(t[0] for t in both), statistics.median(t[1] for t in both))
        for name, both in times.items()
    }


def kimg_within(budget: float, warm_up_cost: float, cost: float) -> float:
    """Thousands of images that a run of so many CPU seconds sees, in whole steps."""
    batch = COMMON["batch"]
    warm_up_steps = -(-COMMON["warmup_kimg"] * 1000 // batch)
    return max(int((budget - warm_up_steps * warm_up_cost) / cost), 1) * batch / 1000


def mean_figures(each: list[Figures]) -> Figures:
    """Means of all figures over runs."""
    names = [field.name for field in fields(Figures)]
    means: dict[str, Any] = {name: np.mean([getattr(one, name) for one in each], axis=0).tolist() for name in names}
    return Figures(**means | {"class_shares": tuple(means["class_shares"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(FORMS), help=f"of {', '.join(FORMS | VARIANTS)}")
    parser.add_argument("--seconds", type=float, default=100.0, help="CPU seconds of each run")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--split", default="selection", choices=("selection", "test"))
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    logging.getLogger("refine").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    kimg = {}
    for name, (warm_up_cost, cost) in costs(
        {name: (FORMS | VARIANTS)[name] for name in args.names}, args.rounds
    ).items():
        kimg[name] = kimg_within(args.seconds, warm_up_cost, cost)
        print(f"{name}: {cost * 1e3:.0f} ms a step, {kimg[name]:g} kimg in {args.seconds:g} s", flush=True)
    print("\n| form | FID | precision | recall | coverage | agreement | variance | rarest class | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    found: dict[str, list[tuple[Figures, float]]] = {name: [] for name in args.names}
    for seed in seeds:
        for name in args.names:
            changes = (FORMS | VARIANTS)[name] | {"kimg": kimg[name]}
            figures, spent = run(changes, seed, args.split, args.samples)
            found[name].append((figures[-1], spent))
            print(row(f"{name}, seed {seed}", figures[-1], spent), flush=True)
    spreads = []
    for name, runs in found.items():
        means = mean_figures([figures for figures, _ in runs])
        print(row(f"**{name}**, mean of {len(runs)}", means, statistics.mean(spent for _, spent in runs)))
        if len(runs) > 1:
            spreads.append(f"{name} {statistics.stdev(figures.fid for figures, _ in runs):.1f}")
    if spreads:
        print(f"\nStandard deviation of the FID over seeds: {', '.join(spreads)}")


if __name__ == "__main__":
    main()
