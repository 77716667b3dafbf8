"""Tries settings of the demo on the built-in digits pair, and prints a row of docs/demo.md's table for each.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.demo_settings [NAME ...] [--seeds=0,1,2] [--split=selection]

Settings are chosen on the selection split; `--split=test` is for what is published.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from typing import Any

import torch

from refine import RunConfig
from refine import run as refine
from refine.digits.figures import Figures, figures_of
from refine.presets import PRESETS

DEMO: dict[str, Any] = {
    **PRESETS["digits"].options,
    "metrics": "none",
    "snap_ticks": 1000,
    "preflight": False,
    "device": "cpu",
}
# The published method at the demo's rates, batch and noise levels; each row of the tables changes some settings.
COMMON: dict[str, Any] = {**DEMO, "objective": "ikl", "kimg": 30.0}


def sigmas(text: str) -> dict[str, str]:
    """One distribution of noise levels for both networks."""
    return {"sigma": text, "fake_sigma": text}


CONSTANT: dict[str, Any] = {"share_forward": True, "lr_decay": "none"}  # one batch for both updates, rates that stay
SIGMA_0, SIGMA_06 = sigmas("lognormal:0,1.2"), sigmas("lognormal:0.6,1.2")
RATES_3, RATES_5 = {**CONSTANT, "glr": 3e-3, "flr": 3e-3}, {**CONSTANT, "glr": 5e-3, "flr": 5e-3}
TRIES: dict[str, dict[str, Any]] = {
    # What the settings were chosen from.
    "sigma 0, rates 3e-3, 20 kimg": {**SIGMA_0, **RATES_3, "kimg": 20.0},
    "sigma 0, rates 5e-3, 20 kimg": {**SIGMA_0, **RATES_5, "kimg": 20.0},
    "sigma 0, rates 5e-3, no dropout, 20 kimg": {**SIGMA_0, **RATES_5, "fake_dropout": False, "kimg": 20.0},
    "sigma 0.6, rates 5e-3, 20 kimg": {**SIGMA_06, **RATES_5, "kimg": 20.0},
    "sigma 0.6, rates 5e-3, 26 kimg": {**SIGMA_06, **RATES_5, "kimg": 26.0},
    "sigma 0.6, rates 5e-3, 30 kimg": {**SIGMA_06, **RATES_5, "kimg": 30.0},
    "sigma 0.6, rate 7e-3 to 0, one batch, 32 kimg": {"share_forward": True, "kimg": 32.0},
    # The published method, and what becomes of it without its parts.
    "IKL": {},
    "without warm-up": {"warmup_kimg": 0.0},
    "without fake score (SDS)": {"objective": "sds"},
    "at the paper's sigma": sigmas("lognormal:-1.2,1.2"),
    # The demo, and what its settings were chosen from.
    "demo": DEMO,
    "SIM, sigma 0.6, rates 7e-3 and 5e-3, 20 kimg": {**DEMO, "kimg": 20.0},
    "SIM, sigma 0, rates 7e-3 and 5e-3, 20 kimg": {**DEMO, **SIGMA_0, "kimg": 20.0},
    "SIM, ln sigma ~ N(1, 1.4^2), rates 7e-3 and 5e-3, 20 kimg": {**DEMO, **sigmas("lognormal:1,1.4"), "kimg": 20.0},
    "SIM, sigma 0.6, rates 12e-3 and 7e-3, 20 kimg": {**DEMO, "glr": 12e-3, "flr": 7e-3, "kimg": 20.0},
    "SIM, sigma 0.6, rates 10e-3 and 6e-3, 50 kimg": {**DEMO, "glr": 10e-3, "flr": 6e-3, "kimg": 50.0},
}


def run(
    changes: dict[str, Any], seed: int, split: str, count: int, *, before: bool = False
) -> tuple[list[Figures], float]:
    """The figures at the end, after those of the start if asked for, and CPU seconds of the run without measuring."""
    spent, found, snapshots = 0.0, [], []

    def timed(generator: torch.nn.Module, snapshot: str) -> list[dict[str, Any]]:
        nonlocal spent
        snapshots.append(snapshot)
        if len(snapshots) == 1 and not before:
            return []
        start = time.process_time()
        found.append(figures_of(generator, split, count))
        spent += time.process_time() - start
        return []

    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(gan="digits", teacher="edm-digits", outdir=folder, seed=seed, **(COMMON | changes))
        start = time.process_time()
        refine(config, evaluate=timed)
        return found, time.process_time() - start - spent


def row(name: str, found: Figures, seconds: float | None) -> str:
    """A line of the table."""
    cells = [name, f"{found.fid:.1f}"]
    cells += [f"{value:.2f}" for value in (found.precision, found.recall, found.coverage, found.agreement)]
    cells += [f"{found.variance:.1f}", f"{min(found.class_shares):.3f}", "" if seconds is None else f"{seconds:.0f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(TRIES), help=f"default: all of {', '.join(TRIES)}")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--split", default="selection", choices=("selection", "test"))
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--kimg", type=float, default=None)
    args = parser.parse_args()
    logging.getLogger("refine").setLevel(logging.WARNING)
    print("| settings | FID | precision | recall | coverage | agreement | variance | rarest class | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    start_shown = False
    for name in args.names:
        for seed in map(int, args.seeds.split(",")):
            changes = TRIES[name] | ({} if args.kimg is None else {"kimg": args.kimg})
            figures, seconds = run(changes, seed, args.split, args.samples, before=not start_shown)
            if not start_shown:
                print(row("the generator before refinement", figures[0], None))
                start_shown = True
            print(row(f"{name}, seed {seed}", figures[-1], seconds), flush=True)


if __name__ == "__main__":
    main()
