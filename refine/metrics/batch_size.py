"""Images per pass through a network: found by trial on a GPU, and halved when out of memory.

An image depends on its number alone, so batches change values by rounding at most. On a CPU there is no trial: more
than 64 images per pass are not faster there, and one command gives the same digits each time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from refine.errors import UserError

log = logging.getLogger("refine")

USUAL = 64
LARGEST = 512
PIXELS = 64 * 512**2  # a batch is held in full size: the more pixels, the fewer images
WORTHWHILE = 1.05  # least speedup of a larger batch

T = TypeVar("T")


class BatchSize:
    """A number of images per pass that adapts to speed and memory.

    Args:
        now: Number to begin with.
        largest: Largest number; it is doubled up to there as long as images then take less time. None: no trial.

    Attributes:
        now: Number at present.
        settled: Whether it has stopped growing.
    """

    def __init__(self, now: int = USUAL, largest: int | None = None) -> None:
        self.now = now
        self.largest = largest or now
        self.settled = 2 * now > self.largest
        self._best, self._best_rate = now, 0.0
        self._is_new = True  # the first batch of a size also chooses kernels and gets memory

    @classmethod
    def choose(cls, given: int | None, device: torch.device, resolution: int) -> BatchSize:
        """The user's number; else found by trial on a GPU, and 64 on a CPU.

        Args:
            given: Number given by the user.
            device: Device of generator and detectors.
            resolution: Pixels of the images along an axis.
        """
        if given is not None or device.type == "cpu":
            return cls(given or USUAL)
        return cls(USUAL, max(min(LARGEST, PIXELS // resolution**2), USUAL))

    def parts(self, numbers: range, work: Callable[[range], T]) -> Iterator[T]:
        """Applies `work` to parts of `numbers`; on out of memory again, to smaller parts.

        Raises:
            UserError: Out of memory with a single image.
        """
        done = 0
        while done < len(numbers):
            part = numbers[done : done + self.now]
            try:
                result = work(part)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise UserError(
                        "Out of memory with a single image of a metric: choose a larger GPU, or --device=cpu."
                    ) from error
            else:
                yield result
                done += len(part)
                continue
            self._halve(len(part))  # here, after the error and the tensors that it holds are gone

    def took(self, count: int, seconds: float) -> None:
        """Tells how long so many images took, from latents to features; the size is chosen by these times."""
        if self.settled or count < self.now:
            return
        if self._is_new:
            self._is_new = False
            return
        rate = count / max(seconds, 1e-9)
        if rate < self._best_rate * WORTHWHILE:
            self.now, self.settled = self._best, True
            return
        self._best, self._best_rate, self._is_new = self.now, rate, True
        if 2 * self.now <= self.largest:
            self.now *= 2
        else:
            self.settled = True

    def _halve(self, count: int) -> None:
        self.now, self.settled = (count + 1) // 2, True
        log.info(f"Out of memory with {count} images of a metric per pass; continuing with {self.now}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error means out of memory, which TorchScript, cuDNN and the CPU report in different words."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
