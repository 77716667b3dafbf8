"""The `impl` keyword of the original operators: it names an implementation, of which there is one here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor


def accepts_impl(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Adds the keyword `impl`, 'ref' or 'cuda', which changes nothing; ValueError on anything else."""

    @functools.wraps(operator)
    def with_impl(*args: Any, impl: str = "cuda", **kwargs: Any) -> Tensor:
        if impl not in ("ref", "cuda"):
            raise ValueError(f"impl has to be 'ref' or 'cuda', not {impl!r}")
        return operator(*args, **kwargs)

    return with_impl
