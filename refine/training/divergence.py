"""Estimate of KL(generator, teacher) in nats, from the estimates that a step computes anyway.

Along the diffusion, KL(q, p) = 1/2 integral of E_q |Delta / sigma^2|^2 d(sigma^2), with Delta = D_T(x_t) - D_F(x_t)
if D_F is the generator's own denoiser. Noise levels are drawn from a known distribution, so the mean over images of
|Delta|^2 / (sigma^2 density of ln sigma) is an unbiased estimate of the integral, with a standard error.

The estimate is exact only if the fake score matches the generator: the fake score's own error adds to |Delta|^2. It
covers only the noise levels of the run, the central `COVERED` of their distribution. Both limitations are constant
over a run, so trust its trend more than its value. It refers to the live generator, as the fake score does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refine.diffusion.noise_levels import Distribution
from refine.objectives import Scores
from refine.training.statistics import RunningMeans

NATS = "Divergence/nats"
STDERR = f"{NATS}_stderr"
COVERED = 0.98  # share of the noise levels: further out, the few images of a tick would have dominating weights
FLAT_ERRORS = 2.0  # standard errors that make a decrease significant


def add_divergence(statistics: RunningMeans, scores: Scores, distribution: Distribution) -> None:
    """Adds a micro-batch to the estimate: `Divergence/nats`, its standard error, and both by band of noise levels.

    Args:
        statistics: Running means to add to.
        scores: Estimates of teacher and fake score.
        distribution: Distribution of the noise levels in `scores`.
    """
    with torch.no_grad():
        statistics.add_terms(NATS, divergence_terms(scores, distribution), scores.sigma)


def divergence_terms(scores: Scores, distribution: Distribution) -> Tensor:
    """Terms [N] whose expectation is the part of KL(generator, teacher), in nats, from the covered noise levels.

    A distribution with a single noise level covers no part: its terms are not finite, and nothing is reported.
    """
    sigma = scores.sigma
    low, high = covered_levels(distribution)
    squared = (scores.teacher - scores.fake).square().sum(dim=[1, 2, 3])
    terms = squared / (sigma**2 * distribution.log_sigma_density(sigma))
    return torch.where((sigma >= low) & (sigma <= high), terms, terms * 0)


def covered_levels(distribution: Distribution) -> tuple[float, float]:
    """Smallest and largest noise level of the central `COVERED` of a distribution."""
    tail = (1 - COVERED) / 2
    low, high = distribution.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


@dataclass(frozen=True)
class Reading:
    """Estimate at one status line.

    Attributes:
        cur_nimg: Position of the run in images.
        nats: Estimate in nats.
        stderr: Standard error in nats.
    """

    cur_nimg: int
    nats: float
    stderr: float


def readings(rows: Iterable[Mapping[str, object]]) -> list[Reading]:
    """Readings in rows of `stats.jsonl`; rows of the warm-up, and rows without a finite estimate, are skipped."""
    found = []
    for row in rows:
        values = [row.get(name) for name in ("Progress/cur_nimg", NATS, STDERR)]
        if all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            nimg, nats, stderr = (float(v) for v in values if isinstance(v, int | float))
            found.append(Reading(int(nimg), nats, stderr))
    return found


def is_flat(history: Sequence[Reading], patience: int) -> bool:
    """True if the estimate has stopped falling: no significant negative slope over the last `patience` readings.

    A line is fitted to the logarithm of the readings by weighted least squares. The slope is significant if it is more
    than `FLAT_ERRORS` standard errors below zero. The standard error comes from those of the readings, or from the
    scatter about the line if that is larger.

    Args:
        history: Readings in the order of the run.
        patience: Number of readings to fit, at least 3.

    Raises:
        ValueError: `patience` is below 3; two points have no scatter about a line.
    """
    if patience < 3:
        raise ValueError(f"patience={patience} must be at least 3")
    last = [reading for reading in history if reading.nats > 0][-patience:]
    if len(last) < patience:
        return False
    x = torch.tensor([reading.cur_nimg for reading in last], dtype=torch.float64)
    y = torch.tensor([math.log(reading.nats) for reading in last], dtype=torch.float64)
    error = torch.tensor([max(reading.stderr / reading.nats, 1e-6) for reading in last], dtype=torch.float64)
    weight = 1 / error**2
    x = x - (weight * x).sum() / weight.sum()
    spread = (weight * x**2).sum()
    slope = (weight * x * y).sum() / spread
    residual = y - (weight * y).sum() / weight.sum() - slope * x
    scatter = (weight * residual**2).sum() / (patience - 2)  # 1 if the readings' own errors account for it
    return bool(slope >= -FLAT_ERRORS * (scatter.clamp(min=1) / spread).sqrt())


def reading_at(history: Sequence[Reading], after: int, until: int) -> Reading | None:
    """Mean of the readings in a stretch of the run; None if it has no readings.

    Args:
        history: Readings in the order of the run.
        after: Start of the stretch in images, exclusive: the position of the previous snapshot.
        until: End of the stretch in images, inclusive: the position of the snapshot.
    """
    inside = [reading for reading in history if after < reading.cur_nimg <= until]
    if not inside:
        return None
    nats = math.fsum(reading.nats for reading in inside) / len(inside)
    return Reading(until, nats, math.hypot(*(reading.stderr for reading in inside)) / len(inside))


def best_snapshot(history: Sequence[Reading], snapshots: Sequence[int]) -> int | None:
    """Snapshot with the smallest estimate over the stretch of the run that leads to it.

    Args:
        history: Readings in the order of the run.
        snapshots: Positions of the snapshots in images, ascending; a snapshot at 0 has no reading.

    Returns:
        Position of the best snapshot in images; None if no snapshot has a reading.
    """
    ends = [0, *snapshots]
    stretches = (reading_at(history, start, end) for start, end in itertools.pairwise(ends))
    found = [reading for reading in stretches if reading is not None]
    return min(found, key=lambda reading: reading.nats).cur_nimg if found else None
