"""Checks of the constructor arguments that a file gives, with bounds that keep a malicious file small."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any

from refine.errors import UserError

# Far above any real network.
MAX_WIDTH = 2**20
MAX_RESOLUTION = 2**16
MAX_LAYERS = 100
MAX_TAPS = 32


def shown(value: Any) -> str:
    """The beginning of a value's repr: a file may hold a number that takes hours to print."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python's limit of the digits of an int
        return f"{type(value).__name__} of enormous size"


@dataclass(frozen=True)
class Checks:
    """Checks whose messages begin with what the arguments are for.

    Attributes:
        subject: Beginning of each sentence, such as "A StyleGAN2 generator".
    """

    subject: str

    def whole(self, name: str, value: Any, low: int, high: int) -> None:
        """Raises UserError unless a value is a whole number in [low, high]."""
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UserError(f"{self.subject} needs {name} as a whole number from {low} to {high}, not {shown(value)}.")

    def real(self, name: str, value: Any, low: float, high: float) -> None:
        """Raises UserError unless a value is a number in [low, high]."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UserError(f"{self.subject} needs {name} as a number from {low} to {high}, not {shown(value)}.")

    def finite(self, name: str, value: Any) -> None:
        """Raises UserError unless a value is a number that float32 can hold."""
        self.real(name, value, -1e30, 1e30)

    def choice(self, name: str, value: Any, choices: tuple[bool | str, ...]) -> None:
        """Raises UserError unless a value is one of several."""
        if not isinstance(value, bool | str) or value not in choices:
            allowed = ", ".join(str(choice) for choice in choices)
            raise UserError(f"{self.subject} needs {name} as one of {allowed}, not {shown(value)}.")
