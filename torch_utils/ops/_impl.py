"""The `impl` argument of the original operators: it names an implementation, of which there is one here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor


def accepts_impl(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: add a last argument `impl`, 'ref' or 'cuda', which changes nothing; ValueError on anything else."""
    own = inspect.signature(operator)
    num_own = len(own.parameters)

    @functools.wraps(operator)
    def with_impl(*args: Any, impl: str = "cuda", **kwargs: Any) -> Tensor:
        if len(args) == num_own + 1:
            *args, impl = args  # type: ignore[assignment]
        if impl not in ("ref", "cuda"):
            raise ValueError(f"impl has to be 'ref' or 'cuda', not {impl!r}")
        return operator(*args, **kwargs)

    last = inspect.Parameter("impl", inspect.Parameter.POSITIONAL_OR_KEYWORD, default="cuda", annotation=str)
    with_impl.__signature__ = own.replace(parameters=[*own.parameters.values(), last])  # type: ignore[attr-defined]
    return with_impl
