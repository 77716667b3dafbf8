"""Score distillation sampling (DreamFusion, arXiv 2209.14988): the IKL gradient without a fake score.

The generated image itself stands in for what the fake score would expect, Delta = D_T(x_t) - x0. There is no entropy
term, so samples move to the teacher's modes and variety is lost: here as the limit to compare with, not to use.
"""

from __future__ import annotations

from torch import Tensor

from refine.objectives import ikl
from refine.objectives.objective import Objective, Scores


def generator_loss(scores: Scores, weighting: str) -> Tensor:
    """The surrogate whose derivative with respect to x0 is w (x0 - D_T), [N]."""
    x0 = scores.x0.detach()
    gradient = ikl.generator_gradient(x0, scores.teacher, x0, scores.sigma, weighting)
    return ikl.surrogate_loss(scores.x0, gradient)


OBJECTIVE = Objective(generator_loss, tuple(ikl.WEIGHTINGS), needs_fake=False)
