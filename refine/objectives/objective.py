"""The contract of an objective: from the networks' estimates on noisy images to a loss of the generator."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Generated images x0, and the estimates of x0 that the networks make from x_t = x0 + sigma n.

    Attributes:
        x0: Generated images as the teacher sees them, [N, C, R, R], differentiable.
        sigma: Noise levels > 0, [N].
        teacher: D_T(x_t), [N, C, R, R].
        fake: D_F(x_t) of the fake score, [N, C, R, R]; the teacher's estimate if no fake score is needed.
        logit: Logarithm of the density ratio p_teacher / q_generator at x_t, [N]; None if no ratio is needed.
    """

    x0: Tensor
    sigma: Tensor
    teacher: Tensor
    fake: Tensor
    logit: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """Loss that moves the generator. Parameters of an objective are the fields of its class.

    Attributes:
        name: Name on the command line.
        needs_fake: Whether a fake score is fitted to the generator.
        needs_ratio: Whether a density ratio is fitted, whose logit is in `Scores.logit`.
        through_networks: Whether the gradient passes through the networks into x_t, with their parameters constant;
            if not, their estimates are constants.
    """

    name: ClassVar[str]
    needs_fake: ClassVar[bool] = True
    needs_ratio: ClassVar[bool] = False
    through_networks: ClassVar[bool] = False

    def loss(self, scores: Scores) -> Tensor:
        """Loss of each image, [N]; the mean over the global batch is differentiated.

        The value itself may be a surrogate without meaning: only its gradient is that of the objective.
        """
        raise NotImplementedError

    def caution(self) -> str | None:
        """Warning if the objective, with these parameters, can move the generator the wrong way; None otherwise."""
        return None

    def __str__(self) -> str:
        """The text that `parse_objective` reads: `ikl`, `ikl:weighting=dmd`. Defaults are left out."""
        changed = [
            f"{field.name}={int(value) if isinstance(value, bool) else value}"
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return ":".join([self.name, *([",".join(changed)] if changed else [])])


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each pair of images, [N, C, R, R] x [N, C, R, R] -> [N]."""
    return (a * b).sum(dim=[1, 2, 3])
