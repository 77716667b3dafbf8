"""TF32, the float32 arithmetic of NVIDIA GPUs with a mantissa of 10 bits: allowed, forbidden, and looked up.

PyTorch 2.9 has a second set of flags, `fp32_precision`. Where a script has used the second, PyTorch refuses to tell the
first, `allow_tf32`; where not, the first is understood by everything else that reads flags.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _flags() -> list[tuple[Any, str, Any]]:
    """Flags of matrix products and of cuDNN: object, attribute, and the value of exact arithmetic."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    try:
        _ = matmul.allow_tf32, cudnn.allow_tf32
    except RuntimeError:
        return [(place, "fp32_precision", "ieee") for place in (matmul, cudnn.conv, cudnn.rnn)]
    return [(place, "allow_tf32", False) for place in (matmul, cudnn)]


def flags() -> tuple[Any, ...]:
    """Return the values in force, to be compared only."""
    return tuple(getattr(place, name) for place, name, _ in _flags())


def allow_in_convolutions(allowed: bool) -> None:
    """Allow or forbid TF32 in cuDNN for the whole process, and leave matrix products as they are."""
    for place, name, exact in _flags()[1:]:
        setattr(place, name, allowed if name == "allow_tf32" else ("tf32" if allowed else exact))


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Context in which float32 on a GPU means float32, in convolutions and matrix products."""
    found = _flags()
    previous = [getattr(place, name) for place, name, _ in found]
    for place, name, exact in found:
        setattr(place, name, exact)
    try:
        yield
    finally:
        for (place, name, _), value in zip(found, previous, strict=True):
            setattr(place, name, value)
