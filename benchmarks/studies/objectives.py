"""Objectives at equal processor time, on the built-in digits pair, and what the number in nats is worth.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.objectives [--seconds=175] [--seeds=0,1,2] [OBJECTIVE ...]
    OMP_NUM_THREADS=1 python -m benchmarks.studies.objectives --course [--kimg=30] [OBJECTIVE ...]

First, steps of all objectives take turns, and their median CPU times say how many images each sees in the given seconds
(warm-up included; measuring and the teacher's samples, which are drawn once and kept, not). Then each is run for so
many, with the settings of the digits otherwise: Adam makes the step's size independent of the loss's scale, so that all
have the same learning rates. `--course` takes the Frechet distance of a run at every status line, and prints its rank
correlation with the estimated divergence.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
from typing import Any

import torch
from scipy.stats import spearmanr

from benchmarks.studies.demo_settings import COMMON, row, run
from benchmarks.studies.sharing import costs, kimg_within
from refine import RunConfig
from refine import run as refine
from refine.digits.figures import Figures, figures_of
from refine.training.divergence import NATS

READINGS = 20  # of a course
OBJECTIVES: dict[str, dict[str, Any]] = {
    text: {"objective": text}
    for text in (
        "ikl", "ikl:dmd", "ikl:score", "ikl:vsd", "sid:0.5", "sid:1", "sid:1.2", "sim:c=1", "sim:c=1,detach_norm=1",
        "fgm", "f:kl", "f:js", "f:jeffreys", "f:softened-rkl", "f:hellinger", "f:skew,alpha=0.3", "fisher:kl",
        "fisher:js", "sds", "smart",
    )
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    # Not run unless named.
    "ikl, gan 0.1": {"objective": "ikl", "gan_weight": 0.1},
    "ikl, gan 1": {"objective": "ikl", "gan_weight": 1.0},
    "sim:c=1, gan 0.1": {"objective": "sim:c=1", "gan_weight": 0.1},
    "smart, gan 1": {"objective": "smart", "gan_weight": 1.0},
    "sim:c=1, backtrack": {"objective": "sim:c=1", "backtrack": 3},
    "ikl, backtrack": {"objective": "ikl", "backtrack": 3},
}


def table(names: list[str], budget: float, seeds: list[int], split: str, samples: int, rounds: int) -> None:
    """Prints figures of every objective and seed, and their means over the seeds."""
    known, kimg = OBJECTIVES | VARIANTS, {}
    for name, (warm_up_cost, cost) in costs({name: known[name] for name in names}, rounds).items():
        kimg[name] = kimg_within(budget, warm_up_cost, cost)
        print(f"{name}: {cost * 1e3:.0f} ms a step, {kimg[name]:g} kimg in {budget:g} s", flush=True)
    print("\n| objective | FID | precision | recall | coverage | agreement | variance | rarest class | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    found: dict[str, list[Figures]] = {name: [] for name in names}
    for seed in seeds:
        for name in names:
            figures, spent = run(known[name] | {"kimg": kimg[name]}, seed, split, samples)
            found[name].append(figures[-1])
            print(row(f"{name}, {kimg[name]:g} kimg, seed {seed}", figures[-1], spent), flush=True)
    print("\n| objective | kimg | FID | recall | coverage | agreement | variance | rarest class |")
    print("|---|---|---|---|---|---|---|---|")
    for name, runs in sorted(found.items(), key=lambda item: statistics.mean(f.fid for f in item[1])):
        fids = [f.fid for f in runs]
        spread = f" +- {statistics.stdev(fids):.1f}" if len(fids) > 1 else ""
        cells = [f"`{name}`", f"{kimg[name]:.0f}", f"{statistics.mean(fids):.1f}{spread}"]
        cells += [
            f"{statistics.mean(getattr(f, key) for f in runs):.2f}" for key in ("recall", "coverage", "agreement")
        ]
        cells.append(f"{statistics.mean(f.variance for f in runs):.1f}")
        cells.append(f"{statistics.mean(min(f.class_shares) for f in runs):.3f}")
        print(f"| {' | '.join(cells)} |")


def course(names: list[str], kimg: float, seeds: list[int], split: str, samples: int) -> None:
    """Prints the divergence beside the Frechet distance of the live generator's average, and their rank correlation."""
    known = OBJECTIVES | VARIANTS
    for name in names:
        for seed in seeds:
            fids: list[float] = []

            def measure(generator: torch.nn.Module, snapshot: str, fids: list[float] = fids) -> list[dict[str, Any]]:
                fids.append(figures_of(generator, split, samples).fid)
                return []

            with tempfile.TemporaryDirectory() as folder:
                every = {"tick_kimg": kimg / READINGS, "snap_ticks": 1}
                options = COMMON | known[name] | every | {"kimg": kimg, "seed": seed, "outdir": folder}
                snapshot = refine(RunConfig(gan="digits", teacher="edm-digits", **options), evaluate=measure)
                rows = [
                    json.loads(line)
                    for line in (snapshot.parent / "stats.jsonl").read_text(encoding="utf-8").splitlines()
                ]
            nats = [row[NATS] for row in rows if row["Progress/cur_nimg"] > 0]
            pairs = list(zip(nats, fids[1:], strict=True))  # the first figure is of the generator as it came
            print(f"\n{name}, seed {seed}: " + ", ".join(f"{n:.3g} nats FID {fid:.1f}" for n, fid in pairs))
            print(f"rank correlation {spearmanr(*zip(*pairs, strict=True)).statistic:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(OBJECTIVES), help=f"of {', '.join(OBJECTIVES | VARIANTS)}")
    parser.add_argument("--seconds", type=float, default=175.0, help="CPU seconds of each run")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--split", default="selection", choices=("selection", "test"))
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--course", action="store_true")
    parser.add_argument("--kimg", type=float, default=30.0, help="length of the runs of --course")
    args = parser.parse_args()
    logging.getLogger("refine").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    if args.course:
        course(args.names, args.kimg, seeds, args.split, args.samples)
    else:
        table(args.names, args.seconds, seeds, args.split, args.samples, args.rounds)


if __name__ == "__main__":
    main()
