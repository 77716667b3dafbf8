"""Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991).

The manifold of a set is the union of balls around its elements, each as large as the distance to its k-th neighbour.
Precision is the share of generated images within the reference's manifold, recall that of the reference within the
generator's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MAX_BLOCK_BYTES = 256 << 20


@dataclass(frozen=True)
class PrecisionRecall:
    """Both from 0 to 1."""

    precision: float
    recall: float


def precision_recall(
    real: Tensor | np.ndarray,
    generated: Tensor | np.ndarray,
    nhood_size: int = 3,
    *,
    half: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_block_bytes: int = MAX_BLOCK_BYTES,
) -> PrecisionRecall:
    """Precision and recall of two sets of features.

    Distances are computed in blocks of rows: beside one copy of the features in `dtype`, no more than
    `max_block_bytes` are in use (but at least one row).

    Args:
        real: [N, D].
        generated: [M, D].
        nhood_size: k.
        half: round features to float16 first, as the StyleGAN suite does.
        dtype: of the distances. The suite's are float16 on a GPU, which moves single images across a border.
        device: where distances are computed.
        max_block_bytes: bound on what the distances take.
    """
    sets = [torch.as_tensor(features) for features in (real, generated)]
    if half:
        sets = [features.to(torch.float16) for features in sets]
    # Distances do not depend on the origin, and their rounding is smallest when it lies in the middle.
    origin = sets[0].to(torch.float64 if sets[0].device.type != "mps" else torch.float32).mean(dim=0)
    x, y = (((features.to(origin.dtype) - origin).to(dtype)).to(device) for features in sets)
    radii_x, radii_y = (_squared_radii(features, nhood_size, max_block_bytes) for features in (x, y))
    return PrecisionRecall(
        precision=_share_inside(y, x, radii_x, max_block_bytes), recall=_share_inside(x, y, radii_y, max_block_bytes)
    )


def _blocks(num_rows: int, row: int, max_block_bytes: int) -> list[slice]:
    size = max(max_block_bytes // row, 1)
    return [slice(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]


def _row_bytes(features: Tensor) -> int:
    return 4 * len(features) * features.element_size()  # distances, and room for the selection among them


def _squared_distances(x: Tensor, y: Tensor, squares_of_y: Tensor) -> Tensor:
    return torch.addmm(squares_of_y, x, y.t(), alpha=-2).add_(x.square().sum(dim=1, keepdim=True))


def _squared_radii(x: Tensor, nhood_size: int, max_block_bytes: int) -> Tensor:
    """Squared distance of each row to its k-th neighbour; the row itself, at distance 0, is none."""
    squares = x.square().sum(dim=1)
    k = min(nhood_size + 1, len(x))
    radii = [
        _squared_distances(x[rows], x, squares).topk(k, largest=False).values[:, -1]
        for rows in _blocks(len(x), _row_bytes(x), max_block_bytes)
    ]
    return torch.cat(radii)


def _share_inside(probes: Tensor, x: Tensor, squared_radii: Tensor, max_block_bytes: int) -> float:
    squares = x.square().sum(dim=1)
    inside = [
        (_squared_distances(probes[rows], x, squares) <= squared_radii).any(dim=1)
        for rows in _blocks(len(probes), _row_bytes(x), max_block_bytes)
    ]
    return torch.cat(inside).double().mean().item()
