"""Features of many images: each process computes its share, and all get the whole, in the order of the images."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from refine.errors import UserError
from refine.metrics.batch_size import BatchSize
from refine.metrics.detectors import Detector
from refine.metrics.metric import FeatureSpec
from refine.metrics.moments import MomentsBuilder, merge_all
from refine.metrics.sampler import for_detector
from refine.runtime import distributed

log = logging.getLogger("refine")
SECONDS_BETWEEN_LINES = 60.0  # if there is no terminal to show a bar

T = TypeVar("T")
Images = Callable[[range, BatchSize], Iterator[Tensor]]  # numbers of images -> uint8 [N, C, H, W], N <= batch.now


def collect(
    images: Images, numbers: range, specs: Sequence[FeatureSpec], batch: BatchSize, title: str
) -> dict[FeatureSpec, Any]:
    """Sends images through detectors.

    Args:
        images: Function that draws or reads images by their number.
        numbers: Numbers of all images wanted, over all processes.
        specs: Features wanted of them.
        batch: Images per pass in each process.
        title: Title of the progress bar.

    Returns:
        `Moments` or rows [len(numbers), D] for each spec; the same at every process.

    Raises:
        UserError: An image or feature cannot be had, or is not finite; every process raises it.
        KeyboardInterrupt: Ctrl-C at any process; every process raises it.
    """
    mine = numbers[distributed.share(len(numbers))]

    def work() -> list[Any]:
        kept: dict[FeatureSpec, Any] = {spec: MomentsBuilder() if spec.keep == "moments" else [] for spec in specs}
        outputs = {(spec.detector, spec.output) for spec in specs}
        begun = time.perf_counter()
        for part in with_progress(images(mine, batch), len(mine), title):
            seen = for_detector(part)
            for detector, output in outputs:
                rows = torch.cat([*batch.parts(range(len(seen)), partial(_seen_by, detector, output, seen))])
                if not torch.isfinite(rows).all():
                    raise UserError(f"The detector {detector.path} gives features that are not finite: give another.")
                for spec in specs:
                    if (spec.detector, spec.output) != (detector, output):
                        continue
                    if spec.keep == "moments":
                        kept[spec].add(rows)
                    else:
                        dtype = torch.float16 if spec.keep == "half" else torch.float32
                        kept[spec].append(rows.to(dtype).cpu().numpy())
            batch.took(len(part), time.perf_counter() - begun)
            begun = time.perf_counter()
        return [kept[spec].build() if spec.keep == "moments" else _joined(kept[spec]) for spec in specs]

    parts = at_all(work)
    return {
        spec: merge_all(values)
        if spec.keep == "moments"
        else np.concatenate([value for value in values if value is not None])
        for spec, values in zip(specs, zip(*parts, strict=True), strict=True)
    }


def collect_rows(values: Images, numbers: range, batch: BatchSize, title: str) -> Any:
    """Concatenated values [len(numbers)] of all processes, at all of them."""
    mine = numbers[distributed.share(len(numbers))]
    parts = at_all(
        lambda: [part.float().cpu().numpy() for part in with_progress(values(mine, batch), len(mine), title)]
    )
    return np.concatenate([row for part in parts for row in part])


def _seen_by(detector: Detector, output: str, images: Tensor, part: range) -> Tensor:
    return getattr(detector, output)(images[part.start : part.stop])


def _joined(rows: list[np.ndarray]) -> np.ndarray | None:
    return np.concatenate(rows) if rows else None


def at_all(work: Callable[[], T]) -> list[T]:
    """Every process's result, by rank. An error of one is raised at all, so that none waits in vain.

    Raises:
        UserError: At all processes, if one raised it (or another error, which that process raises as it is).
        KeyboardInterrupt: At all processes, if one was interrupted.
    """
    if distributed.world_size() == 1:
        return [work()]
    result: Any = None
    failure: BaseException | None = None
    try:
        result = work()
    except (Exception, KeyboardInterrupt) as error:
        failure = error
    told = (type(failure).__name__, str(failure)) if failure is not None else None
    failures = [told for told in distributed.gather(told) if told is not None]
    if failure is not None:
        raise failure
    if failures:
        kind, message = failures[0]
        raise KeyboardInterrupt if kind == "KeyboardInterrupt" else UserError(message)
    return distributed.gather(result)


def at_first(work: Callable[[], T]) -> T:
    """Result of the first process, at all of them; errors as in `at_all`."""
    return at_all(lambda: work() if distributed.is_rank0() else None)[0]  # type: ignore[return-value]


def with_progress(batches: Iterable[Tensor], total: int, title: str) -> Iterator[Tensor]:
    """Batches with a progress bar on stderr; a line per minute if stderr is not a terminal."""
    silent = None if distributed.is_rank0() else True  # None: a bar at a terminal only
    start = said = time.monotonic()
    done = 0
    with tqdm(total=total, desc=title, unit="img", leave=False, disable=silent, dynamic_ncols=True) as bar:
        for part in batches:
            yield part
            done += len(part)
            bar.update(len(part))
            now = time.monotonic()
            if bar.disable and now - said >= SECONDS_BETWEEN_LINES:
                said = now
                log.info(f"{title}: {done} of {total} images, eta {(now - start) / done * (total - done):.0f} s")
