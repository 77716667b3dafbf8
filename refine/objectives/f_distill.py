"""f-distill (Xu et al., arXiv 2502.15681): the IKL gradient with a weight h(r) on each image, r = p_T / q at x_t.

-sg[h(r) Delta] . x0 has sigma^2 times the gradient of the f-divergence E_q f(r), exactly. Neither the ratio nor the
denoisers are differentiated, so a step costs what one of IKL does, and the fitting of the ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from refine.objectives.f_divergence import DEFAULT_ALPHA, check_range, parse_divergence
from refine.objectives.ikl import generator_gradient, surrogate_loss
from refine.objectives.objective import Objective, Scores
from refine.objectives.weighting import check_weighting


@dataclass(frozen=True)
class FDistill(Objective):
    """Distillation by an f-divergence.

    Attributes:
        divergence: A key of `f_divergence.DIVERGENCES`, or `skew`.
        alpha: Skewness of `skew`, 0 (forward KL) to 1 (reverse KL).
        weighting: A key of `weighting.WEIGHTINGS`.
        r_min: Smallest ratio; smaller ones count as this.
        r_max: Largest ratio; larger ones count as this.
    """

    name: ClassVar[str] = "f"
    needs_ratio: ClassVar[bool] = True
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
        """Surrogate whose derivative with respect to x0 is -h(r) w Delta, [N]."""
        assert scores.logit is not None
        ratio = scores.logit.detach().exp().clamp(self.r_min, self.r_max)
        h = parse_divergence(self.divergence, self.alpha).h(ratio)
        gradient = generator_gradient(scores.x0.detach(), scores.teacher, scores.fake, scores.sigma, self.weighting)
        return surrogate_loss(scores.x0, h.reshape(-1, 1, 1, 1) * gradient)
