"""Mean and covariance of features that come in batches, in float64 and without cancellation.

Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979): the
scatter matrix of two sets together is the sum of both and of the outer product of the difference of their means.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

CHUNK = 256  # rows taken together, whatever the size of batches: the same sums, bit for bit
WEIGHTED_CHUNK = 8192  # of features that are all there


@dataclass(frozen=True)
class Moments:
    """Number, mean and spread of features; what Fréchet distances are computed from.

    Attributes:
        count: Number of features.
        mean: Their mean [D], float64.
        scatter: Sum of the outer products of the deviations from the mean [D, D], float64.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: Tensor | np.ndarray) -> Moments:
        """Moments of features [N, D], N >= 1."""
        rows = _float64(torch.as_tensor(features))
        mean = rows.mean(dim=0)
        centered = rows - mean
        return cls(len(rows), mean.cpu().numpy(), (centered.t() @ centered).cpu().numpy())

    @classmethod
    def weighted(cls, features: Tensor | np.ndarray, weights: np.ndarray) -> Moments:
        """Moments of features [N, D], each of them as often as its weight says: whole numbers [N], not all 0."""
        rows, counts = torch.as_tensor(features), torch.as_tensor(weights)
        builder = None
        for part, often in zip(rows.split(WEIGHTED_CHUNK), counts.split(WEIGHTED_CHUNK), strict=True):
            present = often > 0
            if not bool(present.any()):
                continue
            x, w = _float64(part[present]), often[present].to(torch.float64).to(part.device)
            count = int(w.sum())
            mean = (w @ x) / count
            centered = x - mean
            found = cls(count, mean.cpu().numpy(), (centered.t() @ (centered * w[:, None])).cpu().numpy())
            builder = found if builder is None else merge(builder, found)
        if builder is None:
            raise ValueError("there are no features")
        return builder

    @classmethod
    def from_covariance(cls, mean: np.ndarray, covariance: np.ndarray, count: int, ddof: int) -> Moments:
        """Moments from a mean [D] and a covariance [D, D] that was divided by count - ddof."""
        return cls(count, np.asarray(mean, np.float64), np.asarray(covariance, np.float64) * (count - ddof))

    @property
    def dimension(self) -> int:
        """Dimension D of the features."""
        return len(self.mean)

    @property
    def rank(self) -> int:
        """Largest rank that the scatter matrix of so many features can have."""
        return min(self.count - 1, self.dimension)

    def covariance(self, ddof: int = 0) -> np.ndarray:
        """Covariance [D, D], divided by count (ddof=0, the StyleGAN suite) or by count - 1 (ddof=1, EDM).

        Raises:
            ValueError: There are not more than `ddof` features.
        """
        if self.count <= ddof:
            raise ValueError(f"the covariance of {self.count} feature is not defined")
        return self.scatter / (self.count - ddof)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of two sets of features together."""
    count = a.count + b.count
    difference = b.mean - a.mean
    scatter = a.scatter + b.scatter
    scatter += np.outer(difference, difference * (a.count * b.count / count))
    return Moments(count, a.mean + difference * (b.count / count), scatter)


def merge_all(parts: Iterable[Moments | None]) -> Moments:
    """Moments of all sets together, in the order given; None stands for an empty set.

    Raises:
        ValueError: All are empty.
    """
    present = [part for part in parts if part is not None]
    if not present:
        raise ValueError("there are no features")
    return reduce(merge, present)


class MomentsBuilder:
    """Adder of features, batch by batch; the result does not depend on where batches end."""

    def __init__(self) -> None:
        self._moments: Moments | None = None
        self._waiting: list[Tensor] = []
        self._num_waiting = 0

    def add(self, features: Tensor) -> None:
        """Adds features [N, D], on any device."""
        while self._num_waiting + len(features) >= CHUNK:
            missing = CHUNK - self._num_waiting
            self._waiting.append(features[:missing])
            features = features[missing:]
            self._flush()
        if len(features):
            self._waiting.append(features)
            self._num_waiting += len(features)

    def build(self) -> Moments | None:
        """Moments of everything added; None if nothing was."""
        self._flush()
        return self._moments

    def _flush(self) -> None:
        if self._waiting:
            part = Moments.of(torch.cat(self._waiting))
            self._moments = part if self._moments is None else merge(self._moments, part)
            self._waiting, self._num_waiting = [], 0


def _float64(rows: Tensor) -> Tensor:
    return (rows.cpu() if rows.device.type == "mps" else rows).to(torch.float64)  # MPS has no float64
