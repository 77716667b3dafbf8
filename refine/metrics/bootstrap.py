"""Bootstrap: the interval in which a value would lie with other generated images, from resampling those there are.

Efron, "Bootstrap Methods" (1979). The reference stays as it is, so an interval tells a gain of the generator from the
noise of sampling it. Drawn with replacement, N images are as varied as fewer: a FID of resampled images is too large by
about the bias of N images once more. The spread of the repetitions does not suffer, so the interval is the value and
1.96 of their standard deviations to both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST_REPETITIONS = 10
WIDTH = 1.96  # standard deviations on both sides of 95 % of a normal distribution


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval.

    Attributes:
        value: The value.
        std_error: Standard deviation of the value over samples of generated images.
    """

    value: float
    std_error: float

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends."""
        return self.value - WIDTH * self.std_error, self.value + WIDTH * self.std_error

    def notes(self, label: str, repetitions: int) -> dict[str, Any]:
        """Entries of a row's provenance."""
        return {
            "intervals": {label: list(self.ends)},
            "bootstrap": {"repetitions": repetitions, "std_error": self.std_error, "resampled": "generated images"},
        }


def resampled_counts(num_images: int, repetitions: int, seed: int) -> Iterator[np.ndarray]:
    """For each repetition, how often each of the images was drawn with replacement: [num_images] int64."""
    for repetition in range(repetitions):
        draw = np.random.default_rng([seed, repetition])
        yield np.bincount(draw.integers(num_images, size=num_images), minlength=num_images)


def interval_of(value: float, repeated: Sequence[float] | np.ndarray) -> Interval:
    """The interval around a value, from its repetitions with resampled images.

    Raises:
        ValueError: There are fewer than 2 repetitions.
    """
    if len(repeated) < 2:
        raise ValueError(f"{len(repeated)} repetition has no spread")
    return Interval(value, float(np.std(repeated, ddof=1)))
