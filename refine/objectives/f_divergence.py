"""f-divergences E_q f(r) of a generator's density q from a teacher's density p, with r = p / q.

All that a gradient needs of f is h(r) = r^2 f''(r) (f-distill, arXiv 2502.15681, table 1) and, where r is
differentiated, its slope h'(r).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FDivergence:
    """One divergence.

    Attributes:
        h: Function r -> r^2 f''(r) for r > 0, in the shape of r.
        slope: Its derivative with respect to r.
    """

    h: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


DIVERGENCES: dict[str, FDivergence] = {
    # KL(p, q), f = r ln r: covers what the teacher draws.
    "kl": FDivergence(lambda r: r, torch.ones_like),
    # KL(q, p), f = -ln r: the divergence of IKL.
    "rkl": FDivergence(torch.ones_like, torch.zeros_like),
    # f = (r + 1) ln(1/2 + 1/(2 r)).
    "softened-rkl": FDivergence(lambda r: 1 / (r + 1), lambda r: -1 / (r + 1) ** 2),
    # Twice Jensen-Shannon, f = r ln r - (r + 1) ln((r + 1) / 2).
    "js": FDivergence(lambda r: r / (r + 1), lambda r: 1 / (r + 1) ** 2),
    # KL(p, q) + KL(q, p), f = (r - 1) ln r.
    "jeffreys": FDivergence(lambda r: r + 1, torch.ones_like),
    # Half the squared Hellinger distance of densities, f = 1 - sqrt(r).
    "hellinger": FDivergence(lambda r: r.sqrt() / 4, lambda r: 1 / (8 * r.sqrt())),
    # Neyman's chi^2, f = 1/r - 1.
    "neyman": FDivergence(lambda r: 2 / r, lambda r: -2 / r**2),
}
SKEW, DEFAULT_ALPHA = "skew", 0.5


def skew(alpha: float) -> FDivergence:
    """Skew divergence of score-of-mixture distillation: the forward KL at alpha = 0, the reverse KL at alpha = 1.

    h = r / (alpha r + 1 - alpha), twice Jensen-Shannon's at alpha = 1/2.

    Args:
        alpha: 0 to 1.
    """
    return FDivergence(
        lambda r: r / (alpha * r + 1 - alpha),
        lambda r: (1 - alpha) / (alpha * r + 1 - alpha) ** 2,
    )


def parse_divergence(name: str, alpha: float = DEFAULT_ALPHA) -> FDivergence:
    """The divergence of a name.

    Args:
        name: A key of `DIVERGENCES`, or `skew`.
        alpha: Skewness of `skew`, 0 to 1.

    Raises:
        ValueError: The name is unknown, or alpha is out of range or given for another divergence.
    """
    if name != SKEW and name not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join((*DIVERGENCES, SKEW))}, not {name!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be a number from 0 to 1, not {alpha}")
    if name != SKEW and alpha != DEFAULT_ALPHA:
        raise ValueError(f"alpha is a parameter of {SKEW} alone, not of {name}")
    return skew(alpha) if name == SKEW else DIVERGENCES[name]


def check_range(r_min: float, r_max: float) -> None:
    """Refuses an impossible range of ratios.

    Raises:
        ValueError: Not 0 <= r_min < r_max.
    """
    if not 0 <= r_min < r_max:
        raise ValueError(f"r_min={r_min} and r_max={r_max} must be ordered numbers of at least 0")
