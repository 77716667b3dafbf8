"""Integral Kullback-Leibler divergence of Diff-Instruct (Luo et al., NeurIPS 2023, arXiv 2305.18455).

Notation: x0 are generated images, x_t = x0 + sigma n the same images with noise, D_T and D_F the teacher's and the fake
score's estimates of x0 from x_t. The fake score is a denoiser trained on the generator's images, so its score is that
of the generated images. The gradient of the divergence moves x0 along Delta = D_T(x_t) - D_F(x_t): toward the teacher's
estimate and away from the estimate that the generator's own statistics explain. Neither network is differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from refine.objectives.objective import Objective, Scores
from refine.objectives.weighting import check_weighting, weights


def fake_score_loss(denoised: Tensor, x0: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """Denoising loss that fits the fake score to the generator: lambda(sigma) ||D_F(x_t) - x0||^2.

    lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 gives every noise level the same weight at the
    start of training (arXiv 2206.00364, table 1).

    Args:
        denoised: D_F(x_t), [N, C, H, W], differentiable.
        x0: Generated images, [N, C, H, W]; no gradient flows to them.
        sigma: Noise levels > 0, [N].
        sigma_data: Standard deviation of the data.

    Returns:
        [N], summed over channels and pixels: the mean over the global batch is the loss.
    """
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return weight * (denoised - x0.detach()).square().sum(dim=[1, 2, 3])


def generator_gradient(x0: Tensor, teacher: Tensor, fake: Tensor, sigma: Tensor, weighting: str = "uniform") -> Tensor:
    """Gradient of the divergence with respect to each generated image, -w Delta.

    Args:
        x0: Generated images, [N, C, H, W].
        teacher: D_T(x_t), [N, C, H, W].
        fake: D_F(x_t), [N, C, H, W].
        sigma: Noise levels > 0, [N].
        weighting: A key of `weighting.WEIGHTINGS`.

    Returns:
        [N, C, H, W] without gradient, for `x0.backward(gradient / N)` with a batch of N.

    Raises:
        ValueError: The weighting is unknown.
    """
    weight = weights(weighting, x0, teacher, sigma)
    with torch.no_grad():
        return -weight.reshape(-1, 1, 1, 1) * (teacher - fake)


def surrogate_loss(x0: Tensor, gradient: Tensor) -> Tensor:
    """Surrogate whose derivative with respect to x0 is `gradient`; its value has no meaning.

    Args:
        x0: Generated images, [N, C, H, W], differentiable.
        gradient: Result of `generator_gradient`, [N, C, H, W].

    Returns:
        [N], summed over channels and pixels.
    """
    return (gradient.detach() * x0).sum(dim=[1, 2, 3])


@dataclass(frozen=True)
class IKL(Objective):
    """The Integral KL divergence: gradient -w Delta.

    Attributes:
        weighting: A key of `weighting.WEIGHTINGS`. `vsd` is variational score distillation.
    """

    name: ClassVar[str] = "ikl"
    weighting: str = "uniform"

    def __post_init__(self) -> None:
        check_weighting(self.weighting)

    def loss(self, scores: Scores) -> Tensor:
        """Surrogate whose derivative with respect to x0 is the gradient of the divergence, [N]."""
        gradient = generator_gradient(scores.x0.detach(), scores.teacher, scores.fake, scores.sigma, self.weighting)
        return surrogate_loss(scores.x0, gradient)
