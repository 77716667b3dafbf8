"""Rates that a GPU is expected to reach, from counted operations and assumptions: the projection of docs/scaling.md."""

from __future__ import annotations

from typing import NamedTuple

KIMG, WARMUP_KIMG = 1000, 20  # what Refine does unless told otherwise
PEAK_BF16, PEAK_TF32 = 989e12, 494e12  # FLOP/s of an H100 SXM without sparsity (data sheet)
UTILIZATION = (0.15, 0.4)  # share of that over a whole step: an assumption, pessimistic and optimistic
EIGHT = 0.9 * 8  # speed of eight GPUs beside one: an assumption


class Forward(NamedTuple):
    """GFLOP of one forward pass with one image, counted by `python -m benchmarks.speed.scaling`."""

    generator: float
    teacher: float


PAIRS = {
    "CIFAR-10": Forward(8.0, 42.4),
    "FFHQ-64": Forward(32.3, 83.7),
    "FFHQ-1024 with 64": Forward(150.7, 83.7),
}
# Passes of a step with a fresh batch for each update: two forward and one backward, which counts twice, of the
# generator; of the U-Net teacher, fake score, and the fake score's training, which counts three times.
GENERATOR_PASSES, UNET_PASSES = 4, 5


def step_gflop(pair: str) -> float:
    """GFLOP of a step for each of its images."""
    return GENERATOR_PASSES * PAIRS[pair].generator + UNET_PASSES * PAIRS[pair].teacher


def _seconds_at_peak(pair: str, generator_passes: float, unet_passes: float) -> float:
    forward = PAIRS[pair]
    return 1e9 * (generator_passes * forward.generator / PEAK_TF32 + unet_passes * forward.teacher / PEAK_BF16)


def images_per_second(pair: str) -> tuple[float, float]:
    """Lowest and highest rate of a step on one GPU."""
    seconds = _seconds_at_peak(pair, GENERATOR_PASSES, UNET_PASSES)
    low, high = (share / seconds for share in UTILIZATION)
    return low, high


def hours(pair: str) -> tuple[float, float]:
    """Fewest and most hours of a run on one GPU, with the warm-up: its fake score's updates alone."""
    generator_passes = GENERATOR_PASSES * KIMG + WARMUP_KIMG
    unet_passes = UNET_PASSES * KIMG + 3 * WARMUP_KIMG
    at_peak = 1000 * _seconds_at_peak(pair, generator_passes, unet_passes) / 3600
    low, high = (at_peak / share for share in reversed(UTILIZATION))
    return low, high
