"""Distributions of noise levels, and their schedules over a run.

A distribution is given by its quantile function, so that every distribution takes one uniform number per image.
Low noise levels sharpen detail; in the study behind the presets, higher noise levels preserved classes and variety.
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
            raise UserError(f"lognormal:{self.P_mean},{self.P_std} is impossible: use a finite mean and a std >= 0.")

    def quantile(self, u: Tensor) -> Tensor:
        """Noise levels at quantiles u in (0, 1), in the shape of u."""
        return (self.P_mean + self.P_std * torch.special.ndtri(u)).exp()

    def log_sigma_density(self, sigma: Tensor) -> Tensor:
        """Probability density of ln sigma at noise levels > 0, in the shape of sigma."""
        z = (sigma.log() - self.P_mean) / self.P_std
        return (-(z**2) / 2).exp() / (math.sqrt(2 * math.pi) * self.P_std)


@dataclass(frozen=True)
class Karras:
    """Sigma^(1/rho) ~ uniform: the grid of EDM's sampler, which SiD and DMD2 draw training noise levels from."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (0 < self.sigma_min <= self.sigma_max < math.inf and 0 < self.rho < math.inf):
            raise UserError(
                f"karras:{self.sigma_min},{self.sigma_max},{self.rho} is impossible: use 0 < sigma_min <= sigma_max < "
                "inf and rho > 0."
            )

    def quantile(self, u: Tensor) -> Tensor:
        """Noise levels at quantiles u in (0, 1), in the shape of u."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + (high - low) * u) ** self.rho

    def log_sigma_density(self, sigma: Tensor) -> Tensor:
        """Probability density of ln sigma at noise levels from sigma_min to sigma_max, in the shape of sigma."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return sigma ** (1 / self.rho) / (self.rho * (high - low))


Distribution = LogNormal | Karras
DISTRIBUTIONS: dict[str, type[LogNormal] | type[Karras]] = {"lognormal": LogNormal, "karras": Karras}


@dataclass(frozen=True)
class Schedule:
    """Distribution whose parameters change linearly over the run.

    Attributes:
        start: Distribution at the start of the run.
        end: Distribution at the end of the run, of the same kind.
    """

    start: Distribution
    end: Distribution

    def __post_init__(self) -> None:
        if type(self.start) is not type(self.end):
            raise UserError(
                f"A schedule of noise levels cannot go from {_text(self.start)} to {_text(self.end)}: use the same "
                "kind of distribution at both ends."
            )

    def __str__(self) -> str:
        """Text that `parse_schedule` reads."""
        ends = (self.start,) if self.start == self.end else (self.start, self.end)
        return "->".join(_text(end) for end in ends)

    def at(self, progress: float) -> Distribution:
        """Distribution at `progress`, from 0 (start of the run) to 1 (end of the run)."""
        pairs = zip(astuple(self.start), astuple(self.end), strict=True)
        return type(self.start)(*(a * (1 - progress) + b * progress for a, b in pairs))


def parse_schedule(text: str | Schedule) -> Schedule:
    """Parses `lognormal`, `lognormal:-1.2,1.2`, `karras:0.002,80,7`, or two of one kind joined by `->`.

    Raises:
        UserError: The text is not a schedule, or its numbers are impossible; the message gives an example.
    """
    if isinstance(text, Schedule):
        return text
    if not isinstance(text, str):
        raise UserError(f"{text!r} is not text: use for example 'lognormal:-1.2,1.2' or 'karras:0.002,80,7'.")
    parts = [_parse_distribution(part.strip()) for part in text.split("->")]
    if len(parts) > 2:
        raise UserError(f"{text!r} has more than two ends: use one distribution, or two joined by ->.")
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
            f"{text!r} is not a noise-level distribution: use for example lognormal:-1.2,1.2 or karras:0.002,80,7."
        ) from error
