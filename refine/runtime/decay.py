"""Decay of exponential moving averages (EMA): by half-life, or with EDM2's power function."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refine.errors import UserError


@dataclass(frozen=True)
class HalfLife:
    """EMA whose memory of an image halves every `kimg` thousands of images.

    Attributes:
        kimg: Half-life in thousands of images, at least 0; 0 for the live weights.
        rampup: Largest half-life as a share of the images so far; None for no ramp-up.
    """

    kimg: float
    rampup: float | None = None

    def beta(self, cur_nimg: int, batch: int) -> float:
        """Weight of the old average in an update.

        Args:
            cur_nimg: Images so far.
            batch: Images since the last update, of which there was one per batch.
        """
        halflife = self.kimg * 1000
        if self.rampup is not None:
            halflife = min(halflife, cur_nimg * self.rampup)
        return float(0.5 ** (batch / max(halflife, 1e-8)))

    def __str__(self) -> str:
        return f"{self.kimg:g}"


@dataclass(frozen=True)
class Power:
    """EMA with EDM2's power function (Karras et al., arXiv 2312.02696): step t has a weight proportional to t^gamma.

    Attributes:
        std: Standard deviation of the profile relative to the run so far, 0 to 0.28 exclusive: EDM2's EMA length.
    """

    std: float

    @property
    def gamma(self) -> float:
        """Exponent: the real root of std^2 (gamma + 2)^2 (gamma + 3) = gamma + 1 (arXiv 2312.02696, algorithm 2)."""
        inverse = self.std**-2
        return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())

    def beta(self, cur_nimg: int, batch: int) -> float:
        """Weight of the old average in an update; see `HalfLife.beta`."""
        return float((1 - 1 / max(cur_nimg / batch, 1)) ** (self.gamma + 1))

    def __str__(self) -> str:
        return f"power:{self.std:g}"


@dataclass(frozen=True)
class Decays:
    """Decays of several averages, each once.

    Attributes:
        each: The decays.
    """

    each: tuple[HalfLife | Power, ...] = ()

    def __str__(self) -> str:
        return ",".join(map(str, self.each)) or "none"


def parse_decays(text: str | Decays) -> Decays:
    """Reads half-lives in kimg and lengths of EDM2's profile, such as `0.5,2,power:0.1`; `none` for no averages.

    Raises:
        UserError: An entry is neither, or occurs twice.
    """
    if isinstance(text, Decays):
        return text
    if not isinstance(text, str):
        raise UserError(f"averages are text such as 0.5,2,power:0.1, not {text!r}.")
    parts = [part.strip() for part in text.split(",")]
    if parts == ["none"]:
        return Decays()
    decays = tuple(map(_parse_decay, parts))
    twice = [str(decay) for decay in decays if decays.count(decay) > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice: give each average once.")
    return Decays(decays)


def _parse_decay(text: str) -> HalfLife | Power:
    kind, colon, number = text.rpartition(":")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not colon and 0 <= value < math.inf:
        return HalfLife(value)
    if kind == "power" and 0 < value < 0.28:
        return Power(value)
    raise UserError(
        f"{text!r} is no average: give a half-life in kimg, such as 0.5, or the length of EDM2's profile, from 0 to "
        "0.28, such as power:0.1."
    )
