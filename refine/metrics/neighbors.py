"""Distances between two sets of features, in blocks of rows that fit in memory: radii and nearest neighbors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_BLOCK_BYTES = 256 << 20
CHUNK = 1024  # rows converted at once
SPARE = 4  # neighbors more than wanted, of which rounding may have changed the order


@dataclass(frozen=True)
class Sets:
    """Two sets of features around a common origin, on one device.

    Attributes:
        x: Features [N, D].
        y: Features [M, D].
        max_block_bytes: Bound on the memory of the distances.
    """

    x: Tensor
    y: Tensor
    max_block_bytes: int = MAX_BLOCK_BYTES

    @classmethod
    def of(
        cls,
        x: Tensor | np.ndarray,
        y: Tensor | np.ndarray,
        *,
        half: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        max_block_bytes: int = MAX_BLOCK_BYTES,
    ) -> Sets:
        """A copy of two sets.

        Args:
            x: Features [N, D].
            y: Features [M, D].
            half: Round features to float16 first, as the StyleGAN suite does.
            dtype: Type of the distances.
            device: Device that computes distances.
            max_block_bytes: Bound on the memory of the distances (but at least one row's).
        """
        sets = [torch.as_tensor(features) for features in (x, y)]
        # Distances do not depend on the origin, and their rounding is smallest when it lies in the middle.
        origin = sum(_float(part).sum(dim=0) for part in sets[0].split(CHUNK)) / len(sets[0])
        centered = [_centered(features, origin, half, dtype, device) for features in sets]
        return cls(centered[0], centered[1], max_block_bytes)

    def squared_distances(self) -> Iterator[tuple[slice, Tensor]]:
        """Squared distances of some elements of y, which the slice names, to all of x: [rows, N], block by block."""
        squares = self.x.square().sum(dim=1)
        for rows in _blocks(len(self.y), len(self.x), self.x.element_size(), self.max_block_bytes):
            yield rows, _squared_distances(self.y[rows], self.x, squares)

    def squared_radii_of_x(self, nhood_size: int) -> Tensor:
        """Squared distance of each element of x to its k-th neighbor in x: [N]."""
        return _squared_radii(self.x, nhood_size, self.max_block_bytes)

    def squared_radii_of_y(self, nhood_size: int) -> Tensor:
        """Squared distance of each element of y to its k-th neighbor in y: [M]."""
        return _squared_radii(self.y, nhood_size, self.max_block_bytes)

    def nearest(self, count: int) -> tuple[Tensor, Tensor]:
        """The nearest elements of x for each of y: distances, ascending, and numbers, [M, count] each.

        Those found by dot products are measured again by differences, so that copies are at distance 0.
        """
        distances, numbers = [], []
        for rows, squared in self.squared_distances():
            candidates = squared.topk(min(count + SPARE, len(self.x)), largest=False).indices
            for part, y in zip(candidates.split(CHUNK), self.y[rows].split(CHUNK), strict=True):
                exact = torch.stack([(self.x[column] - y).norm(dim=1) for column in part.t()], dim=1)
                found = exact.sort(dim=1, stable=True)
                distances.append(found.values[:, :count])
                numbers.append(part.gather(1, found.indices[:, :count]))
        return torch.cat(distances), torch.cat(numbers)


def _float(features: Tensor) -> Tensor:
    return features.to(torch.float32 if features.device.type == "mps" else torch.float64)  # MPS has no float64


def _centered(features: Tensor, origin: Any, half: bool, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """One copy, made a few rows at a time."""
    centered = torch.empty(features.shape, dtype=dtype, device=device)
    for part, target in zip(features.split(CHUNK), centered.split(CHUNK), strict=True):
        target.copy_(_float(part.to(torch.float16) if half else part) - origin)
    return centered


def _blocks(num_rows: int, num_columns: int, element_size: int, max_block_bytes: int) -> list[slice]:
    """Rows whose distances to all columns, and the selection among them, take so many bytes."""
    size = max(max_block_bytes // (4 * num_columns * element_size), 1)
    return [slice(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]


def _squared_distances(x: Tensor, y: Tensor, squares_of_y: Tensor) -> Tensor:
    return torch.addmm(squares_of_y, x, y.t(), alpha=-2).add_(x.square().sum(dim=1, keepdim=True))


def _squared_radii(x: Tensor, nhood_size: int, max_block_bytes: int) -> Tensor:
    """Squared distance of each row to its k-th neighbor; the row itself, at distance 0, is none."""
    squares = x.square().sum(dim=1)
    radii = [
        _squared_distances(x[rows], x, squares).topk(nhood_size + 1, largest=False).values[:, -1]
        for rows in _blocks(len(x), len(x), x.element_size(), max_block_bytes)
    ]
    return torch.cat(radii)
