"""Random numbers that depend only on (seed, stream, step).

Each step draws its random numbers from these three, for the global batch, and each process takes its part. A resumed
run therefore continues with the same numbers without a saved generator state, and two processes with half the batch
each see the same numbers as one process with the whole batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from refine.runtime import distributed


def stream_seed(seed: int, stream: str, step: int, *more: int) -> int:
    """Seed of 63 bits for one stream of one step.

    Args:
        seed: Seed of the run.
        stream: Name of the stream, such as `generator/z`.
        step: Index of the step.
        more: Further numbers that distinguish seeds, such as the rank of a process.
    """
    key = repr((seed, stream, step, *more)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def stream_generator(seed: int, stream: str, step: int, *more: int) -> torch.Generator:
    """Random number generator on the CPU, at the start of a stream; see `stream_seed`."""
    return torch.Generator("cpu").manual_seed(stream_seed(seed, stream, step, *more))


@dataclass(frozen=True)
class Seeds:
    """Seeds of PyTorch's default generator for one micro-batch.

    They differ between processes and micro-batches, unlike the numbers drawn for the global batch. Using them changes
    the state of the default generator.

    Attributes:
        seed: Seed of the run.
        stream: Name of the update within the step, such as `generator`.
        step: Index of the step.
        index: Index of the micro-batch within this process's part.
    """

    seed: int
    stream: str
    step: int
    index: int

    def seed_torch(self, purpose: str) -> None:
        """Seeds PyTorch's default generator for one purpose; the same purpose gives the same numbers again."""
        torch.manual_seed(stream_seed(self.seed, f"{self.stream}/{purpose}", self.step, distributed.rank(), self.index))
