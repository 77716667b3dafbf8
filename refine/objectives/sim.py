"""Score implicit matching (SIM, Luo et al., arXiv 2410.16794): the gradient of E h(Delta) for a distance h.

With q held constant in h's argument, the gradient of E_q h(Delta) is that of E grad h(Delta) . (D_F - x0), passing x_t
into both denoisers and into grad h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from refine.objectives.objective import Objective, Scores, inner
from refine.objectives.weighting import check_weighting, weights

DISTANCES = ("huber", "l2")


@dataclass(frozen=True)
class SIM(Objective):
    """Score implicit matching.

    Attributes:
        c: Scale > 0 of the pseudo-Huber distance sqrt(|y|^2 + c^2) - c, whose norm is taken over an image: |Delta| well
            below c counts as its square, well above as itself.
        distance: `huber`, or `l2` for |y|^2, which is twice SiD with alpha = 1; c is not used then.
        detach_norm: Whether sqrt(|Delta|^2 + c^2) is held constant, as a weight of each image.
        weighting: A key of `weighting.WEIGHTINGS`.
    """

    name: ClassVar[str] = "sim"
    through_networks: ClassVar[bool] = True
    c: float = 1.0
    distance: str = "huber"
    detach_norm: bool = False
    weighting: str = "uniform"

    def __post_init__(self) -> None:
        if not 0 < self.c < math.inf:
            raise ValueError(f"c must be a number above 0, not {self.c}")
        if self.distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, not {self.distance!r}")
        check_weighting(self.weighting)

    def loss(self, scores: Scores) -> Tensor:
        """Weighted loss of each image, [N]."""
        delta = scores.teacher - scores.fake
        loss = inner(delta, scores.fake - scores.x0)
        if self.distance == "l2":
            loss = 2 * loss
        else:
            norm = (inner(delta, delta) + self.c**2).sqrt()
            loss = loss / (norm.detach() if self.detach_norm else norm)
        return weights(self.weighting, scores.x0, scores.teacher, scores.sigma) * loss
