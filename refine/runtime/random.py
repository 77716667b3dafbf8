"""Random numbers that depend on (seed, stream, step) alone.

Whatever a step draws, it draws anew from these three and for the global batch; each process takes its part. So a
resumed run continues with the same numbers without any generator's state being saved, and two processes with half
the batch see what one process with the whole batch sees.
"""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, stream: str, step: int, *more: int) -> int:
    """A 63-bit seed for one stream of one step; `more` tells further apart, such as the rank of a process."""
    key = repr((seed, stream, step, *more)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def stream_generator(seed: int, stream: str, step: int, *more: int) -> torch.Generator:
    """A CPU generator at the start of that stream: the same numbers on every device."""
    return torch.Generator("cpu").manual_seed(stream_seed(seed, stream, step, *more))
