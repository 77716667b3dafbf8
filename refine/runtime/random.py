"""Random numbers that depend on (seed, stream, step) alone.

Whatever a step draws, it draws anew from these three and for the global batch; each process takes its part. So a
resumed run continues with the same numbers without any generator's state being saved, and two processes with half
the batch see what one process with the whole batch sees.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from refine.runtime import distributed


def stream_seed(seed: int, stream: str, step: int, *more: int) -> int:
    """Seed of 63 bits for one stream of one step; `more` tells further apart, such as the rank of a process."""
    key = repr((seed, stream, step, *more)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def stream_generator(seed: int, stream: str, step: int, *more: int) -> torch.Generator:
    """CPU generator at the start of a stream: the same numbers on every device."""
    return torch.Generator("cpu").manual_seed(stream_seed(seed, stream, step, *more))


@dataclass(frozen=True)
class Seeds:
    """Seeds of PyTorch's default generator for one micro-batch.

    They differ by process and micro-batch, unlike what is drawn for the global batch. Using them leaves the default
    generator in another state than before.

    Attributes:
        seed: Seed of the run.
        stream: Update of the step, such as `generator`.
        step: Number of the step.
        index: Number of the micro-batch within this process's part.
    """

    seed: int
    stream: str
    step: int
    index: int

    def seed_torch(self, purpose: str) -> None:
        """Seeds the default generator for one purpose; the same purpose again gives the same numbers."""
        torch.manual_seed(stream_seed(self.seed, f"{self.stream}/{purpose}", self.step, distributed.rank(), self.index))
