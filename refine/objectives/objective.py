"""What an objective is: from what the networks say of a noisy image to a loss of the generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Generated images, and what both denoisers make of them with noise, x_t = x0 + sigma n.

    Attributes:
        x0: generated images as the teacher sees them [N, C, R, R], differentiable.
        sigma: noise levels > 0, [N].
        teacher: D_T(x_t), [N, C, R, R].
        fake: D_F(x_t), [N, C, R, R].
    """

    x0: Tensor
    sigma: Tensor
    teacher: Tensor
    fake: Tensor


@dataclass(frozen=True)
class Objective:
    """A way to move the generator.

    Attributes:
        generator_loss: (scores, weighting) -> [N]; the mean over the global batch is differentiated.
        weightings: the weightings that it knows; the first is the default.
        needs_fake: whether it looks at the fake score. If not, none is fitted, and `Scores.fake` is the teacher's.
        through_networks: whether the derivative passes through both denoisers, or `teacher` and `fake` are constants.
    """

    generator_loss: Callable[[Scores, str], Tensor]
    weightings: tuple[str, ...]
    needs_fake: bool = True
    through_networks: bool = False
