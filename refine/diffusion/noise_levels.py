"""Which noise levels a step looks at: distributions of sigma, and how they move over a run.

A distribution is its quantile function, so that one uniform number per image decides, whatever the distribution.
Low noise levels sharpen detail; the study behind the presets found that higher ones keep classes and variety.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from refine.errors import UserError


@dataclass(frozen=True)
class LogNormal:
    """ln sigma ~ N(P_mean, P_std^2): EDM's training distribution (arXiv 2206.00364, table 1)."""

    P_mean: float = -1.2
    P_std: float = 1.2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.P_mean) and 0 <= self.P_std < math.inf):
            raise UserError(f"lognormal:{self.P_mean},{self.P_std} needs a finite mean and a spread of at least 0.")

    def quantile(self, u: Tensor) -> Tensor:
        """Noise levels at u in (0, 1), of u's shape."""
        return (self.P_mean + self.P_std * torch.special.ndtri(u)).exp()

    def log_density(self, sigma: Tensor) -> Tensor:
        """Density of ln sigma at noise levels > 0, of sigma's shape."""
        z = (sigma.log() - self.P_mean) / self.P_std
        return (-(z**2) / 2).exp() / (math.sqrt(2 * math.pi) * self.P_std)


@dataclass(frozen=True)
class Karras:
    """Sigma^(1/rho) uniform between its ends: the sampler's grid, as other distillations use it (SiD, DMD2)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (0 < self.sigma_min <= self.sigma_max < math.inf and 0 < self.rho < math.inf):
            raise UserError(
                f"karras:{self.sigma_min},{self.sigma_max},{self.rho} needs 0 < sigma_min <= sigma_max and rho > 0."
            )

    def quantile(self, u: Tensor) -> Tensor:
        """Noise levels at u in (0, 1), of u's shape."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + (high - low) * u) ** self.rho

    def log_density(self, sigma: Tensor) -> Tensor:
        """Density of ln sigma at noise levels within its ends, of sigma's shape."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return sigma ** (1 / self.rho) / (self.rho * (high - low))


Distribution = LogNormal | Karras
DISTRIBUTIONS: dict[str, type[LogNormal] | type[Karras]] = {"lognormal": LogNormal, "karras": Karras}


@dataclass(frozen=True)
class Schedule:
    """A distribution that moves in a straight line from `start` to `end` over the run; of one kind."""

    start: Distribution
    end: Distribution

    def __post_init__(self) -> None:
        if type(self.start) is not type(self.end):
            raise UserError("A schedule of noise levels needs the same kind of distribution at both ends.")

    def __str__(self) -> str:
        """The text that `parse_schedule` reads."""
        ends = (self.start,) if self.start == self.end else (self.start, self.end)
        return "->".join(_text(end) for end in ends)

    def at(self, progress: float) -> Distribution:
        """The distribution at `progress`, 0 (start of the run) to 1 (its end)."""
        pairs = zip(astuple(self.start), astuple(self.end), strict=True)
        return type(self.start)(*(a * (1 - progress) + b * progress for a, b in pairs))


def parse_schedule(text: str | Schedule) -> Schedule:
    """Reads `lognormal`, `lognormal:-1.2,1.2`, `karras:0.002,80,7`, or two of one kind joined by `->`.

    Raises:
        UserError: with an example of what would be right.
    """
    if isinstance(text, Schedule):
        return text
    if not isinstance(text, str):
        raise UserError(f"{text!r} is not text: write for example 'lognormal:-1.2,1.2' or 'karras:0.002,80,7'.")
    parts = [_parse_distribution(part.strip()) for part in text.split("->")]
    if len(parts) > 2:
        raise UserError(f"A schedule of noise levels has two ends at most, unlike {text!r}.")
    return Schedule(parts[0], parts[-1])


def _text(distribution: Distribution) -> str:
    name = next(name for name, kind in DISTRIBUTIONS.items() if isinstance(distribution, kind))
    return f"{name}:{','.join(repr(number).removesuffix('.0') for number in astuple(distribution))}"


def _parse_distribution(text: str) -> Distribution:
    name, _, numbers = text.partition(":")
    try:
        return DISTRIBUTIONS[name](*(float(number) for number in numbers.split(",") if numbers))
    except (KeyError, ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{text!r} is no distribution of noise levels: write for example lognormal:-1.2,1.2 or karras:0.002,80,7."
        ) from error
