"""Objectives at equal processor time, on the built-in digits pair, and what the number in nats is worth.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.objectives [--kimg=15] [--seeds=0,1,2] [--keep=FILE] [OBJECTIVE ...]
    OMP_NUM_THREADS=1 python -m benchmarks.studies.objectives --course [--kimg=30] [OBJECTIVE ...]

First, steps of all objectives take turns, and their median CPU times say how many images each sees while `ikl` sees
`--kimg` thousand (warm-up included; measuring and the teacher's samples, which are drawn once and kept, not). Then each
is run for so many, with the settings of the digits otherwise: Adam makes the step's size independent of the loss's
scale, so that all have the same learning rates. With `--keep`, lengths and figures are lines of a file, and later calls
go on with what is missing there. `--course` takes the Frechet distance of a run at every status line, and prints its
rank correlation with the estimated divergence.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from benchmarks.studies.demo_settings import COMMON, row, run
from benchmarks.studies.sharing import costs, kimg_within, mean_figures
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


def lengths(names: list[str], kimg: float, rounds: int) -> dict[str, float]:
    """Thousands of images of each objective that take as long as so many of `ikl`."""
    known = OBJECTIVES | VARIANTS
    measured = costs({name: known[name] for name in dict.fromkeys(["ikl", *names])}, rounds)
    warm_up_cost, cost = measured["ikl"]
    warm_up_kimg = COMMON["warmup_kimg"]
    budget = (warm_up_kimg * warm_up_cost + kimg * cost) * 1000 / COMMON["batch"]
    return {name: kimg_within(budget, *measured[name]) for name in names}


def table(names: list[str], kimg: float, seeds: list[int], split: str, samples: int, rounds: int, keep: Path) -> None:
    """Prints figures of every objective and seed, and their means over the seeds.

    Args:
        names: Objectives and variants.
        kimg: Thousands of images that `ikl` sees.
        seeds: Seeds of the runs.
        split: Images to measure against, `selection` or `test`.
        samples: Generated images to measure.
        rounds: Steps that are timed.
        keep: JSON lines of lengths and runs. Those that are there are not repeated; new ones are appended.
    """
    lines = [json.loads(line) for line in keep.read_text(encoding="utf-8").splitlines()] if keep.exists() else []
    setting = {"ikl_kimg": kimg, "split": split, "samples": samples}
    lines = [line for line in lines if setting.items() <= line.items()]
    length = {line["name"]: line["kimg"] for line in lines}
    if missing := [name for name in names if name not in length]:
        length |= lengths(missing, kimg, rounds)
    found = {(line["name"], line["seed"]): Figures(**line["figures"]) for line in lines if "figures" in line}
    with keep.open("a", encoding="utf-8") as file:
        for name in missing:
            print(json.dumps(setting | {"name": name, "kimg": length[name]}), file=file, flush=True)
        for seed in seeds:
            for name in names:
                if (name, seed) in found:
                    continue
                figures, spent = run((OBJECTIVES | VARIANTS)[name] | {"kimg": length[name]}, seed, split, samples)
                found[name, seed] = figures[-1]
                about = {"name": name, "kimg": length[name], "seed": seed, "cpu_seconds": round(spent)}
                print(json.dumps(setting | about | {"figures": asdict(figures[-1])}), file=file, flush=True)
                print(row(f"{name}, {length[name]:g} kimg, seed {seed}", figures[-1], spent), flush=True)
    print("\n| objective | kimg | FID | recall | coverage | agreement | variance | rarest class |")
    print("|---|---|---|---|---|---|---|---|")
    runs = {name: [found[name, seed] for seed in seeds] for name in names}
    for name in sorted(names, key=lambda name: statistics.mean(f.fid for f in runs[name])):
        fids = [f.fid for f in runs[name]]
        spread = f" +- {statistics.stdev(fids):.1f}" if len(fids) > 1 else ""
        mean = mean_figures(runs[name])
        cells = [f"`{name}`", f"{length[name]:.0f}", f"{mean.fid:.1f}{spread}"]
        cells += [f"{value:.2f}" for value in (mean.recall, mean.coverage, mean.agreement)]
        rarest = statistics.mean(min(f.class_shares) for f in runs[name])
        cells += [f"{mean.variance:.1f}", f"{rarest:.3f}"]
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
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--split", default="selection", choices=("selection", "test"))
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--course", action="store_true")
    parser.add_argument("--kimg", type=float, help="length of the runs with ikl (15), or of all with --course (30)")
    parser.add_argument("--keep", type=Path, help="file of lengths and figures, to go on with")
    args = parser.parse_args()
    logging.getLogger("refine").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    if args.course:
        course(args.names, args.kimg or 30.0, seeds, args.split, args.samples)
        return
    with tempfile.TemporaryDirectory() as folder:
        keep = args.keep or Path(folder) / "runs.jsonl"
        table(args.names, args.kimg or 15.0, seeds, args.split, args.samples, args.rounds, keep)


if __name__ == "__main__":
    main()
