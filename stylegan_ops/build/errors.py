"""Errors of building."""

from __future__ import annotations

import re


class BuildError(RuntimeError):
    """The operators of a device cannot be built or loaded. The message is one sentence, cause and remedy.

    Attributes:
        cause: Cause, with the file or value concerned, without a period.
        remedy: Remedy in the imperative, preferably one command, without a period.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}: {remedy}.")
        self.cause = cause
        self.remedy = remedy


def first_error(output: str) -> str:
    """The line of a compiler's output that a reader wants: the first with `error`, else the last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    own = [line for line in lines if not line.startswith(("ninja: ", "FAILED: ", "["))]
    errors = [line for line in own if re.search(r"\berror\b", line, flags=re.IGNORECASE)]
    return (errors or own[-1:] or lines[-1:] or ["it printed nothing"])[0]
