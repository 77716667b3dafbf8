"""How many images go through a network at once: found by trial where that pays, and halved where memory ends.

What is drawn for an image depends on its number alone, so batches change no value but by rounding. On a CPU, where
more than some sixty images at once are no faster and the same command is to give the same digits, there is no trial.
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
PIXELS = 64 * 512**2  # images are held at once in full size: with more pixels, fewer
WORTHWHILE = 1.05  # a larger batch has to be so much faster

T = TypeVar("T")


class BatchSize:
    """A number of images at once.

    Args:
        now: to begin with.
        largest: to which it is doubled for as long as images then take less time; None: it is not.

    Attributes:
        now: what it is.
        settled: whether it grows no more.
    """

    def __init__(self, now: int = USUAL, largest: int | None = None) -> None:
        self.now = now
        self.largest = largest or now
        self.settled = 2 * now > self.largest
        self._best, self._best_rate = now, 0.0
        self._is_new = True  # the first batch of a size also chooses kernels and gets memory

    @classmethod
    def choose(cls, given: int | None, device: torch.device, resolution: int) -> BatchSize:
        """What the user gave; else by trial on a GPU, the usual on a CPU.

        Args:
            given: by the user.
            device: where images are drawn and seen.
            resolution: of the images.
        """
        if given is not None or device.type == "cpu":
            return cls(given or USUAL)
        return cls(USUAL, max(min(LARGEST, PIXELS // resolution**2), USUAL))

    def parts(self, numbers: range, work: Callable[[range], T]) -> Iterator[T]:
        """Does work on parts of `numbers`, and again on smaller parts where memory does not suffice.

        Raises:
            UserError: it does not suffice for one.
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
                        "Memory does not suffice for one image of a metric: choose a larger GPU, or --device=cpu."
                    ) from error
            else:
                yield result
                done += len(part)
                continue
            self._halve(len(part))  # here, where the error no longer holds what the part took

    def took(self, count: int, seconds: float) -> None:
        """Says how long so many images took, from number to features: by that the size is chosen."""
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
        log.info(f"Memory does not suffice for {count} images of a metric at once; going on with {self.now}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice; TorchScript, cuDNN and the CPU say so in words of their own."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
