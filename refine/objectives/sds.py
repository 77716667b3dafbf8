"""Score distillation sampling (DreamFusion, arXiv 2209.14988): the IKL gradient without a fake score.

The generated image itself stands in for the fake score's estimate, Delta = D_T(x_t) - x0. There is no entropy term,
so samples move to the teacher's modes and variety is lost: a limit to compare with, not to use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from refine.objectives.ikl import IKL, generator_gradient, surrogate_loss
from refine.objectives.objective import Scores


@dataclass(frozen=True)
class SDS(IKL):
    """Score distillation sampling: gradient w (x0 - D_T)."""

    name: ClassVar[str] = "sds"
    needs_fake: ClassVar[bool] = False

    def loss(self, scores: Scores) -> Tensor:
        """Surrogate whose derivative with respect to x0 is w (x0 - D_T), [N]."""
        x0 = scores.x0.detach()
        return surrogate_loss(scores.x0, generator_gradient(x0, scores.teacher, x0, scores.sigma, self.weighting))

    def caution(self) -> str | None:
        """Warning of the collapse."""
        return "sds has no entropy term, so the generator loses its variety: use --objective=ikl to refine."
