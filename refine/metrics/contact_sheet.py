"""Pictures for looking at: samples near to and far from the reference, and the same latents before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from refine.errors import UserError
from refine.files.atomic import atomic_write
from refine.metrics.collect import Tap
from refine.metrics.moments import Moments
from refine.metrics.suite import Suite
from refine.runtime import distributed

SHEET_COLUMNS = 10
MAX_NEIGHBOURS = 50_000  # reference features that neighbours are looked for among


def distances_to_rows(samples: np.ndarray, reference: np.ndarray, block: int = 256) -> np.ndarray:
    """Distance of each sample [N, D] to the nearest reference feature [M, D]: [N] float32."""
    x, y = (torch.from_numpy(np.asarray(rows, np.float32)) for rows in (samples, reference))
    return torch.cat([torch.cdist(part, y).amin(dim=1) for part in x.split(block)]).numpy()


def distances_to_moments(samples: np.ndarray, reference: Moments) -> np.ndarray:
    """Mahalanobis distance of each sample [N, D] to the middle of the reference: [N] float64.

    Directions in which the reference spreads less than 1e-6 of its widest count as if it spread that much.
    """
    variances, directions = np.linalg.eigh(reference.covariance())
    variances = np.maximum(variances, variances.max() * 1e-6)
    along = (np.asarray(samples, np.float64) - reference.mean) @ directions
    return np.sqrt((along**2 / variances).sum(axis=1))


def nearest_and_farthest(distances: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """Numbers of so many samples: the nearest, nearest first, and the farthest, farthest first."""
    order = np.argsort(distances, kind="stable")
    return order[:count].tolist(), order[::-1][:count].tolist()


def sheet(nearest: Tensor, farthest: Tensor, columns: int = SHEET_COLUMNS) -> np.ndarray:
    """Images uint8 [N, C, H, W] as one picture [height, width, C]: the nearest, a line, the farthest."""
    top, bottom = (tile(images, columns) for images in (nearest, farthest))
    line = np.full((max(nearest.shape[-1] // 8, 2), *top.shape[1:]), 255, np.uint8)
    return np.concatenate([top, line, bottom])


def side_by_side(before: Tensor, after: Tensor, columns: int) -> np.ndarray:
    """Two sets of images uint8 [N, C, H, W] of the same latents, one grid left and one right of a line."""
    left, right = (tile(images, columns) for images in (before, after))
    line = np.full((left.shape[0], max(before.shape[-1] // 8, 2), left.shape[2]), 255, np.uint8)
    return np.concatenate([left, line, right], axis=1)


def tile(images: Tensor, columns: int) -> np.ndarray:
    """Images uint8 [N, C, H, W] in rows of so many: [height, width, C]; the last row may be short and is black then."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    canvas = np.zeros((rows * columns, channels, height, width), np.uint8)
    canvas[:count] = images.cpu().numpy()
    grid = canvas.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    return grid.reshape(rows * height, columns * width, channels)


def draw(sampler: Any, numbers: Sequence[int]) -> Tensor:
    """The images of these numbers, uint8 [N, C, H, W] on the CPU."""
    return torch.cat([sampler.images(range(number, number + 1)).cpu() for number in numbers])


def write_sheet(path: Path, suite: Suite, generator: Any, count: int = 3 * SHEET_COLUMNS) -> None:
    """Writes the samples, of those that were measured last, that lie nearest to and farthest from the reference.

    Nearness is the distance to the closest of the reference's features where they are at hand, else the Mahalanobis
    distance to its middle. All processes call this; the first one writes.

    Raises:
        UserError: no metric compared images with a reference, or the file cannot be written.
    """
    spec = next((spec for spec in suite.specs if spec.needs_reference), None)
    if spec is None or suite.reference is None:
        raise UserError(
            "--contact-sheet shows samples near to a reference: ask for a FID, KID or precision and recall."
        )
    detector = suite.detectors[spec.name]
    samples = suite.kept[0, spec.num_gen, suite.resolution][Tap(detector, keep="rows")]
    known = suite.reference.provenance(spec)["num_images"] or 0
    has_rows = suite.reference.kind != "statistics" or getattr(suite.reference, "features", None) is not None
    if has_rows and known <= MAX_NEIGHBOURS:
        distances = distances_to_rows(samples, suite.reference.get(Tap(detector, keep="rows"), spec))
    else:
        distances = distances_to_moments(samples, suite.reference.get(Tap(detector), spec))
    if distributed.is_first():
        sampler = suite.sampler(generator, None)
        nearest, farthest = nearest_and_farthest(distances, min(count, len(samples)))
        _write_png(path, sheet(draw(sampler, nearest), draw(sampler, farthest)))


def write_grid(path: Path, suite: Suite, generator: Any, before: Any | None, columns: int = 6, rows: int = 6) -> None:
    """Writes the generator's first images; beside them, on the left, those of another one at the same latents.

    Raises:
        UserError: the file cannot be written.
    """
    numbers = range(columns * rows)
    grids = [
        torch.cat([suite.sampler(network, None).images(numbers[i : i + columns]).cpu() for i in numbers[::columns]])
        for network in (before, generator)
        if network is not None
    ]
    _write_png(path, side_by_side(grids[0], grids[1], columns) if before is not None else tile(grids[0], columns))


def _write_png(path: Path, pixels: np.ndarray) -> None:
    with atomic_write(path) as file:
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
