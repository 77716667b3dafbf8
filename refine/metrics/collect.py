"""Features of many images: every process takes its part of them, and all get the whole, in the order of the images."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from refine.errors import UserError
from refine.metrics.batch_size import BatchSize
from refine.metrics.detectors import Detector
from refine.metrics.moments import MomentsBuilder, merge_all
from refine.metrics.sampler import for_detector
from refine.runtime import distributed

log = logging.getLogger("refine")
SECONDS_BETWEEN_LINES = 60.0  # where there is no terminal to show a bar

T = TypeVar("T")
Images = Callable[[range, BatchSize], Iterator[Tensor]]  # numbers of images -> uint8 [N, C, H, W], N <= batch.now


@dataclass(frozen=True)
class Tap:
    """What is kept of images.

    Attributes:
        detector: the network.
        output: "features" or "probabilities".
        keep: "moments"; "rows", all of them as float32; or "half", all of them rounded to float16.
    """

    detector: Detector
    output: str = "features"
    keep: str = "moments"


def collect(images: Images, numbers: range, taps: Sequence[Tap], batch: BatchSize, title: str) -> dict[Tap, Any]:
    """Sends images through detectors.

    Args:
        images: makes or reads images by their number.
        numbers: of all images wanted, over all processes.
        taps: what is wanted of them.
        batch: images at once in each process.
        title: of the progress bar.

    Returns:
        For each tap its `Moments` or rows [len(numbers), D]; the same at every process.

    Raises:
        UserError: raised by every process if one of them meets it.
        KeyboardInterrupt: likewise.
    """
    mine = numbers[distributed.share(len(numbers))]

    def work() -> list[Any]:
        kept: dict[Tap, Any] = {tap: MomentsBuilder() if tap.keep == "moments" else [] for tap in taps}
        outputs = {(tap.detector, tap.output) for tap in taps}
        begun = time.perf_counter()
        for part in with_progress(images(mine, batch), len(mine), title):
            seen = for_detector(part)
            for detector, output in outputs:
                rows = torch.cat([*batch.parts(range(len(seen)), partial(_seen_by, detector, output, seen))])
                if not torch.isfinite(rows).all():
                    raise UserError(f"The detector {detector.path} gives features that are not finite: take another.")
                for tap in taps:
                    if (tap.detector, tap.output) != (detector, output):
                        continue
                    if tap.keep == "moments":
                        kept[tap].add(rows)
                    else:
                        kept[tap].append(rows.to(torch.float16 if tap.keep == "half" else torch.float32).cpu().numpy())
            batch.took(len(part), time.perf_counter() - begun)
            begun = time.perf_counter()
        return [kept[tap].build() if tap.keep == "moments" else _joined(kept[tap]) for tap in taps]

    parts = at_all(work)
    return {
        tap: merge_all(values)
        if tap.keep == "moments"
        else np.concatenate([value for value in values if value is not None])
        for tap, values in zip(taps, zip(*parts, strict=True), strict=True)
    }


def collect_rows(values: Images, numbers: range, batch: BatchSize, title: str) -> Any:
    """The concatenated values [len(numbers)] of all processes, at all of them."""
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
    """Every process's result, by rank. What one raises, all raise, so that nobody waits in vain.

    Raises:
        UserError: at all processes, if one raised it (or another error: that one raises it as it is).
        KeyboardInterrupt: at all processes, if one was interrupted.
    """
    if distributed.size() == 1:
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
    """What the first process computes, at all of them; errors as in `at_all`."""
    return at_all(lambda: work() if distributed.is_first() else None)[0]  # type: ignore[return-value]


def with_progress(batches: Iterable[Tensor], total: int, title: str) -> Iterator[Tensor]:
    """The batches, with a bar on stderr, or a line now and then where stderr is no terminal."""
    silent = None if distributed.is_first() else True  # None: a bar at a terminal only
    start = said = time.monotonic()
    done = 0
    with tqdm(total=total, desc=title, unit="img", leave=False, disable=silent, dynamic_ncols=True) as bar:
        for part in batches:
            yield part
            done += len(part)
            bar.update(len(part))
            now = time.monotonic()
            if bar.disable and distributed.is_first() and now - said >= SECONDS_BETWEEN_LINES:
                said = now
                log.info(f"{title}: {done} of {total} images, eta {(now - start) / done * (total - done):.0f} s")
