"""Score identity Distillation (SiD, Zhou et al., arXiv 2404.04057), and two names of a special case.

The loss is Delta . [(D_T - x0) - alpha Delta] with Delta = D_T(x_t) - D_F(x_t), and its gradient passes x_t into both
denoisers. E Delta . (D_F - x0) = 0 for the exact fake score, so all alpha have the value (1 - alpha) E |Delta|^2, but
not the same gradient, since the fake score is held constant while the generator moves. At alpha = 1/2 the gradient is
exactly half that of the Fisher divergence E |Delta|^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from refine.objectives.objective import Objective, Scores, inner
from refine.objectives.weighting import check_weighting, weights


def sid_loss(scores: Scores, alpha: float) -> Tensor:
    """Unweighted loss of each image, [N]: Delta . [(D_T - x0) - alpha Delta]."""
    delta = scores.teacher - scores.fake
    return inner(delta, scores.teacher - scores.x0 - alpha * delta)


@dataclass(frozen=True)
class SiD(Objective):
    """Score identity Distillation.

    Attributes:
        alpha: Weight of |Delta|^2, finite; values from 1/2 to 1 move every Gaussian toward the teacher.
        weighting: Key of `weighting.WEIGHTINGS`; the published code has `dmd`.
    """

    name: ClassVar[str] = "sid"
    through_networks: ClassVar[bool] = True
    alpha: float = 1.0
    weighting: str = "dmd"

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha must be a finite number, not {self.alpha}")
        check_weighting(self.weighting)

    def loss(self, scores: Scores) -> Tensor:
        """Weighted loss of each image, [N]."""
        weight = weights(self.weighting, scores.x0, scores.teacher, scores.sigma)
        return weight * sid_loss(scores, self.alpha)

    def caution(self) -> str | None:
        """Directions that are pushed the wrong way, by the variances of generator (B) and teacher (A) in x_t.

        For a Gaussian pair the gradient with respect to the generator's mean is (sigma^4 d / A) [1/B - 2 (1 - alpha) k]
        and to its spread 2 tau sigma^4 k [(1 - alpha) k - 1/B], with k = 1/B - 1/A; the signs follow.
        """
        if self.alpha > 1:
            mean, spread = 1 + 1 / (2 * (self.alpha - 1)), 1 + 1 / (self.alpha - 1)
            return (
                f"sid:alpha={self.alpha:g} pushes the generator away from the teacher along directions in which its "
                f"noisy images vary more than the teacher's: by more than {mean:.3g} times in variance for the mean, "
                f"{spread:.3g} times for the spread. A GAN has such directions at low noise: prefer an alpha from 0.5 "
                "to 1, or higher noise levels (--sigma)."
            )
        if self.alpha < 0.5:
            mean = (1 - 2 * self.alpha) / (2 * (1 - self.alpha))
            return (
                f"sid:alpha={self.alpha:g} pushes the generator's mean away from the teacher's along directions in "
                f"which its noisy images have less than {mean:.3g} times the teacher's variance: prefer an alpha from "
                "0.5 to 1."
            )
        return None


@dataclass(frozen=True)
class FGM(Objective):
    """Flow Generator Matching (FGM, arXiv 2410.19310) with a diffusion teacher: 2 SiD(1/2).

    2 SiD(1/2) is 2 Delta . (D_T - x0) - |Delta|^2.

    Attributes:
        weighting: A key of `weighting.WEIGHTINGS`.
    """

    name: ClassVar[str] = "fgm"
    through_networks: ClassVar[bool] = True
    weighting: str = "uniform"

    def __post_init__(self) -> None:
        check_weighting(self.weighting)

    def loss(self, scores: Scores) -> Tensor:
        """Weighted loss of each image, [N]."""
        weight = weights(self.weighting, scores.x0, scores.teacher, scores.sigma)
        return weight * 2 * sid_loss(scores, 0.5)


@dataclass(frozen=True)
class UID(FGM):
    """Universal inverse distillation without data (RealUID): |D_T - x0|^2 - |D_F - x0|^2, which is FGM's loss."""

    name: ClassVar[str] = "uid"
