"""Contact sheets: samples nearest to and farthest from the reference, and the same latents before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.errors import OptionError
from refine.files.images import join, tile, write_png
from refine.metrics.metric import FeatureSpec
from refine.metrics.moments import Moments
from refine.metrics.neighbors import Sets
from refine.metrics.reference import DatasetReference
from refine.metrics.suite import Suite
from refine.runtime import distributed

SHEET_COLUMNS = 10
MAX_NEIGHBORS = 50_000  # reference features among which neighbors are looked for


def distances_to_rows(samples: np.ndarray, reference: np.ndarray, block: int = 256) -> np.ndarray:
    """Distance of each sample [N, D] to the nearest reference feature [M, D]: [N] float32."""
    x, y = (torch.from_numpy(np.asarray(rows, np.float32)) for rows in (samples, reference))
    return torch.cat([torch.cdist(part, y).amin(dim=1) for part in x.split(block)]).numpy()


def distances_to_moments(samples: np.ndarray, reference: Moments) -> np.ndarray:
    """Mahalanobis distance of each sample [N, D] to the mean of the reference: [N] float64.

    Variances along principal axes count as at least 1e-6 of the largest.
    """
    variances, directions = np.linalg.eigh(reference.covariance())
    variances = np.maximum(variances, variances.max() * 1e-6)
    along = (np.asarray(samples, np.float64) - reference.mean) @ directions
    return np.sqrt((along**2 / variances).sum(axis=1))


def nearest_and_farthest(distances: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """Numbers of so many samples: the nearest in ascending and the farthest in descending order."""
    order = np.argsort(distances, kind="stable")
    return order[:count].tolist(), order[::-1][:count].tolist()


def sheet(nearest: Tensor, farthest: Tensor, columns: int = SHEET_COLUMNS) -> np.ndarray:
    """Images uint8 [N, C, H, W] as one picture [height, width, C]: the nearest, a line, the farthest."""
    return join([tile(images, columns) for images in (nearest, farthest)], _gap(nearest), axis=0)


def side_by_side(before: Tensor, after: Tensor, columns: int) -> np.ndarray:
    """Two sets of images uint8 [N, C, H, W] of the same latents, one grid left and one right of a line."""
    return join([tile(images, columns) for images in (before, after)], _gap(before), axis=1)


def _gap(images: Tensor) -> int:
    return max(images.shape[-1] // 8, 2)


def draw(sampler: Any, numbers: Sequence[int]) -> Tensor:
    """Images of these numbers, uint8 [N, C, H, W] on the CPU."""
    return torch.cat([sampler.images(range(number, number + 1)).cpu() for number in numbers])


def write_sheet(path: Path, suite: Suite, generator: Any, count: int = 3 * SHEET_COLUMNS) -> None:
    """Writes the samples nearest to and farthest from the reference, of those that were measured last.

    Distances are those to the closest of the reference's features if they are at hand, else the Mahalanobis distance
    to their mean. All processes call this; the first one writes.

    Raises:
        UserError: No metric compared images with a reference, or the file cannot be written.
    """
    metric = next((metric for metric in suite.metrics if metric.needs_reference), None)
    if metric is None or suite.reference is None:
        raise OptionError(
            "{contact_sheet} compares samples with a reference: ask for a FID, KID or precision and recall."
        )
    detector = suite.detectors[metric.name]
    rows = FeatureSpec(detector, keep="rows")
    samples = suite.kept[0, metric.num_gen, suite.resolution][rows]
    known = suite.reference.provenance(metric)["num_images"] or 0
    has_rows = suite.reference.kind != "statistics" or getattr(suite.reference, "features", None) is not None
    if has_rows and known <= MAX_NEIGHBORS:
        distances = distances_to_rows(samples, suite.reference.get(rows, metric))
    else:
        distances = distances_to_moments(samples, suite.reference.get(FeatureSpec(detector), metric))
    if distributed.is_rank0():
        sampler = suite.sampler(generator, None)
        nearest, farthest = nearest_and_farthest(distances, min(count, len(samples)))
        write_png(path, sheet(draw(sampler, nearest), draw(sampler, farthest)))


def write_neighbors(path: Path, suite: Suite, generator: Any, count: int = 12, neighbors: int = 7) -> None:
    """Writes the samples that are nearest to an image of the data, of those that were measured last, nearest first.

    A row has a sample and, right of a line, its nearest images of the data in the space of the first metric's features.
    All processes call this; the first one writes.

    Raises:
        UserError: No metric compared images with a data set, or the file cannot be written.
    """
    metric = next((metric for metric in suite.metrics if metric.needs_reference), None)
    if metric is None or not isinstance(suite.reference, DatasetReference):
        raise OptionError(
            "{neighbors} shows images of a data set: give it with {data}, and ask for a metric that compares with it."
        )
    rows = FeatureSpec(suite.detectors[metric.name], keep="rows")
    samples = suite.kept[0, metric.num_gen, suite.resolution][rows]
    real = suite.reference.get(rows, metric)
    device = "cpu" if suite.device.type == "mps" else suite.device
    distances, numbers = Sets.of(real, samples, device=device).nearest(min(neighbors, len(real)))
    if distributed.is_rank0():
        sampler = suite.sampler(generator, suite.resolution)
        nearest, _ = nearest_and_farthest(distances[:, 0].cpu().numpy(), min(count, len(samples)))
        drawn = draw(sampler, nearest)
        found = suite.reference.images_at(numbers[nearest].flatten().tolist(), metric)
        pictures = [tile(drawn, 1), tile(found, numbers.shape[1])]
        write_png(path, join(pictures, _gap(drawn), axis=1))


def write_grid(path: Path, suite: Suite, generator: Any, before: Any | None, columns: int = 6, rows: int = 6) -> None:
    """Writes the generator's first images, with another generator's at the same latents left of them.

    Raises:
        UserError: The file cannot be written.
    """
    numbers = range(columns * rows)
    grids = [
        torch.cat([suite.sampler(network, None).images(numbers[i : i + columns]).cpu() for i in numbers[::columns]])
        for network in (before, generator)
        if network is not None
    ]
    write_png(path, side_by_side(grids[0], grids[1], columns) if before is not None else tile(grids[0], columns))
