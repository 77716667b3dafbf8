"""SMaRt's term (Xia et al., arXiv 2311.18208): |x0 - D_T(x_t)|^2 / sigma^2, with the gradient through the teacher.

It pulls images to the teacher's modes and has no entropy term: SMaRt adds it to a GAN's own loss. Alone it takes all
variety away; with `--gan-weight` it has its counterpart back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from refine.objectives.objective import Objective, Scores, inner
from refine.objectives.weighting import check_weighting, weights


@dataclass(frozen=True)
class SMaRt(Objective):
    """The teacher's denoising error on generated images.

    Attributes:
        weighting: A key of `weighting.WEIGHTINGS`; the published term has `score`.
    """

    name: ClassVar[str] = "smart"
    needs_fake: ClassVar[bool] = False
    through_networks: ClassVar[bool] = True
    weighting: str = "score"

    def __post_init__(self) -> None:
        check_weighting(self.weighting)

    def loss(self, scores: Scores) -> Tensor:
        """Weighted loss of each image, [N]."""
        error = scores.x0 - scores.teacher
        return weights(self.weighting, scores.x0, scores.teacher, scores.sigma) * inner(error, error)

    def caution(self) -> str | None:
        """Warning of the collapse."""
        return "smart has no entropy term, so by itself it removes the generator's variety: add --gan-weight."
