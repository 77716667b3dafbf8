"""Generalized Fisher divergence E_q psi(r) |Delta|^2 with psi = h of an f-divergence, and r = p_T / q at x_t.

By the diffusive relation D_f(q, p) = 1/2 integral of E_q psi(r) |Delta / sigma^2|^2 d(sigma^2) it is the rate at which
noise takes the f-divergence away (after Uni-Instruct, arXiv 2505.20755). Its gradient is exactly that of

    (psi - r psi'(r)) |Delta|^2 + 2 psi Delta . (D_F - x0)

with x_t differentiated in both denoisers *and in r*, and the parameters of all three held constant. Published code
detaches r, which is another gradient for every psi but the constant one (reverse KL, the loss of FGM).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from refine.objectives.f_divergence import DEFAULT_ALPHA, check_range, parse_divergence
from refine.objectives.objective import Objective, Scores, inner
from refine.objectives.weighting import check_weighting, weights


@dataclass(frozen=True)
class Fisher(Objective):
    """Generalized Fisher divergence.

    Attributes:
        divergence: A key of `f_divergence.DIVERGENCES`, or `skew`: the f-divergence that it integrates to.
        alpha: Skewness of `skew`, 0 (forward KL) to 1 (reverse KL).
        weighting: A key of `weighting.WEIGHTINGS`.
        r_min: Smallest ratio; psi is constant below.
        r_max: Largest ratio; psi is constant above.
    """

    name: ClassVar[str] = "fisher"
    needs_ratio: ClassVar[bool] = True
    through_networks: ClassVar[bool] = True
    divergence: str = "kl"
    alpha: float = DEFAULT_ALPHA
    weighting: str = "uniform"
    r_min: float = 0.1
    r_max: float = 20.0

    def __post_init__(self) -> None:
        parse_divergence(self.divergence, self.alpha)
        check_weighting(self.weighting)
        check_range(self.r_min, self.r_max)

    def loss(self, scores: Scores) -> Tensor:
        """Weighted loss of each image, [N]."""
        assert scores.logit is not None
        divergence = parse_divergence(self.divergence, self.alpha)
        raw = scores.logit.exp()
        ratio = raw.clamp(self.r_min, self.r_max)
        psi = divergence.h(ratio)
        slope = divergence.slope(ratio) * (raw == ratio)  # of psi as it is used: 0 where the ratio is clamped
        delta = scores.teacher - scores.fake
        loss = (psi - ratio * slope) * inner(delta, delta) + 2 * psi * inner(delta, scores.fake - scores.x0)
        return weights(self.weighting, scores.x0, scores.teacher, scores.sigma) * loss
