"""The released recipe written out plainly and Refine, on the built-in digits pair: do they come to the same?

    OMP_NUM_THREADS=1 python -m benchmarks.studies.agreement [--seeds=0,1,2,3,4] [--kimg=8] [FORM ...]

Both start from the shipped pair and have the settings of the preset `digits`: rates, noise levels, batch, warm-up and
moving average. The recipe (`baseline_step.py`) draws its own numbers with PyTorch's default generator, so that no run
of one equals a run of the other: what can agree are distributions over seeds. That one step of both is the same for the
same numbers is shown in tests/test_baseline_step.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from scipy import stats

from benchmarks.speed.baseline_step import Baseline
from benchmarks.speed.steps import trainer_of_digits
from benchmarks.studies.demo_settings import COMMON
from benchmarks.studies.sharing import FORMS as SHARING
from refine import RunConfig
from refine.diffusion.noise_levels import LogNormal
from refine.digits.figures import figures_of
from refine.pair.pair import Pair, load_pair
from refine.training.optimizer import learning_rate
from refine.training.statistics import RunningMeans

PLAIN = "plain recipe"
FORMS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    **{f"Refine, {name}": options for name, options in SHARING.items()},
}
# What the recipe can be given. Everything else that changes the mathematics has to be as it is by default.
GIVEN = ("glr", "flr", "lr_rampup_kimg", "lr_decay", "ema_halflife_kimg", "ema_rampup", "sigma", "fake_sigma", "batch")
FIXED = (
    *("objective", "fake_steps", "beta1", "beta2", "clip_grad", "anchor", "noise_mode", "fake_dropout"),
    *("fake_augment", "paired_dropout", "train_layers"),
)


class Training(Protocol):
    """Training to compare: by Refine's trainer, or by the recipe in its place."""

    statistics: RunningMeans

    def warm_up_step(self) -> None:
        """One update of the fake score."""

    def step(self) -> None:
        """One update of both networks."""


class Plain:
    """The recipe with a run's learning rates and half-life, called like the trainer.

    Args:
        config: Options, as far as `GIVEN` lists them.
        pair: Networks to start from.

    Raises:
        ValueError: The options ask for what the recipe does not have.
    """

    def __init__(self, config: RunConfig, pair: Pair) -> None:
        schedule = config.sigma
        law = schedule.start
        if law != schedule.end or schedule != config.fake_sigma or not isinstance(law, LogNormal):
            raise ValueError("the plain recipe knows one lognormal distribution of noise levels")
        usual = RunConfig(gan="", teacher="")
        for name in FIXED:
            if getattr(config, name) != getattr(usual, name):
                raise ValueError(f"the plain recipe knows no {name}={getattr(config, name)}")
        self.config, self.statistics = config, RunningMeans()
        networks = (copy.deepcopy(network.module) for network in (pair.generator, pair.teacher))
        self.recipe = Baseline(*networks, config.batch, log_sigma=(law.P_mean, law.P_std))
        self.warmup_nimg = self.cur_nimg = 0
        torch.manual_seed(config.seed)

    def _set_rates(self) -> None:
        config, ramp = self.config, self.config.lr_rampup_kimg * 1000
        rates = (
            learning_rate(config.flr, self.warmup_nimg + self.cur_nimg, rampup_nimg=ramp),
            learning_rate(
                config.glr, self.cur_nimg, rampup_nimg=ramp, decay=config.lr_decay, total_nimg=config.kimg * 1000
            ),
        )
        for optimizer, rate in zip((self.recipe.fake_optimizer, self.recipe.generator_optimizer), rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate
        halflife = config.ema_halflife_kimg * 1000
        if config.ema_rampup is not None:
            halflife = min(halflife, (self.cur_nimg + config.batch) * config.ema_rampup)
        self.recipe.beta = 0.5 ** (config.batch / max(halflife, 1e-8))

    def warm_up_step(self) -> None:
        """One update of the fake score."""
        self._set_rates()
        self.statistics.add("Loss/fake", self.recipe.fit_fake())
        self.warmup_nimg += self.config.batch

    def step(self) -> None:
        """One update of both networks."""
        self._set_rates()
        loss, gap = self.recipe.step()
        self.statistics.add("Loss/fake", loss)
        self.statistics.add("Score/gap", gap)
        self.cur_nimg += self.config.batch


def train(training: Training, config: RunConfig) -> dict[str, list[float]]:
    """Warm-up and steps; the means of each kimg of steps: the fake score's loss and the score gap."""
    for _ in range(math.ceil(config.warmup_kimg * 1000 / config.batch)):
        training.warm_up_step()
    curves: dict[str, list[float]] = {"loss": [], "gap": []}
    cur_nimg = 0
    for kimg in range(round(config.kimg)):
        training.statistics = RunningMeans()
        while cur_nimg < (kimg + 1) * 1000:
            training.step()
            cur_nimg += config.batch
        means = training.statistics.means()
        curves["loss"].append(means["Loss/fake"])
        curves["gap"].append(means["Score/gap"])
    return curves


def run(form: str, seed: int, kimg: float, split: str, samples: int) -> dict[str, Any]:
    """Curves, final figures and CPU seconds of one training."""
    options = COMMON | FORMS[form] | {"seed": seed, "kimg": kimg}
    config = RunConfig(gan="digits", teacher="edm-digits", **options)
    training: Any
    if form == PLAIN:
        training = Plain(config, load_pair("digits", "edm-digits"))
        average = training.recipe.generator_ema
    else:
        training = trainer_of_digits(torch.device("cpu"), **options)
        average = training.generator.average.network.module
    start = time.process_time()
    curves = train(training, config)
    seconds = time.process_time() - start
    figures = asdict(figures_of(average, split, samples))
    return {"form": form, "seed": seed, "seconds": seconds, **curves, "figures": figures}


def last_third(values: list[float]) -> float:
    """Their mean over the last third of the run."""
    return statistics.mean(values[len(values) * 2 // 3 :])


def permutation_p(a: list[float], b: list[float]) -> float:
    """Probability of a difference of means at least as large by chance, over all ways to divide the values."""
    test = stats.permutation_test(
        (a, b), lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis), vectorized=True, n_resamples=math.inf
    )
    return float(test.pvalue)


def table(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The curves, mean and standard deviation over seeds for each kimg."""
    lines = ["", "| kimg | " + " | ".join(f"{form}: loss | gap" for form in runs) + " |"]
    lines.append("|---" * (1 + 2 * len(runs)) + "|")
    for index in range(min(len(run["loss"]) for found in runs.values() for run in found)):
        cells = [f"{index + 1}"]
        for found in runs.values():
            for name, digits in (("loss", 1), ("gap", 4)):
                values = [run[name][index] for run in found]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def comparison(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Each form beside the recipe: difference with its 95 % interval (Welch), and the permutation test."""
    quantities = {
        "FID": lambda run: run["figures"]["fid"],
        "recall": lambda run: run["figures"]["recall"],
        "loss, last third": lambda run: last_third(run["loss"]),
        "gap, last third": lambda run: last_third(run["gap"]),
    }
    lines = ["", "| | form | mean ± sd | difference from the recipe, 95 % | p |", "|---|---|---|---|---|"]
    for name, quantity in quantities.items():
        recipe = [quantity(run) for run in runs[PLAIN]]
        for form, found in runs.items():
            values = [quantity(run) for run in found]
            cells = [name, form, f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}"]
            if form == PLAIN:
                cells += ["", ""]
            else:
                interval = stats.ttest_ind(values, recipe, equal_var=False).confidence_interval()
                difference = statistics.mean(values) - statistics.mean(recipe)
                cells.append(f"{difference:+.2g} ({interval.low:+.2g} to {interval.high:+.2g})")
                cells.append(f"{permutation_p(values, recipe):.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(FORMS), help=f"of {', '.join(FORMS)}")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--kimg", type=float, default=8.0)
    parser.add_argument("--split", default="selection", choices=("selection", "test"))
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--runs", type=Path, help="keeps each run; those that are there already are not repeated")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = (
        [json.loads(line) for line in args.runs.read_text(encoding="utf-8").splitlines()]
        if args.runs and args.runs.exists()
        else []
    )
    runs: dict[str, list[dict[str, Any]]] = {form: [] for form in args.names}
    print("settings: " + ", ".join(f"{name} {COMMON[name]}" for name in GIVEN if name in COMMON), flush=True)
    for seed in map(int, args.seeds.split(",")):
        for form, found in runs.items():
            same = [one for one in kept if (one["form"], one["seed"]) == (form, seed)]
            one = same[0] if same else run(form, seed, args.kimg, args.split, args.samples)
            found.append(one)
            if args.runs and not same:
                with args.runs.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(one) + "\n")
            figures = " ".join(f"{name} {one['figures'][name]:.3g}" for name in ("fid", "recall", "coverage"))
            print(f"{form}, seed {seed}: {figures}, {one['seconds']:.0f} CPU s", flush=True)
    print("\n".join(table(runs)))
    if len(runs.get(PLAIN, [])) > 1:
        print("\n".join(comparison(runs)))


if __name__ == "__main__":
    main()
