"""Guidance: a denoiser moved away from another one, D = D_guide + w (D - D_guide).

If the guide is an unconditional network, this is classifier-free guidance (Ho and Salimans, arXiv 2207.12598); if it is
a smaller or less trained network of the same task, autoguidance (Karras et al., arXiv 2406.02507).

For Gaussian data of one mean, with variances s^2 of the denoiser and s_guide^2 of the guide, the guided density at
noise level sigma has precision w / (s^2 + sigma^2) + (1 - w) / (s_guide^2 + sigma^2). It is positive at every noise
level, so that the density exists, if w s_guide^2 + (1 - w) s^2 > 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from refine.contracts import Denoiser
from refine.diffusion.denoiser import usable_sigmas
from refine.errors import UserError

SIGMAS = (0.1, 0.4, 1.5, 6.0)  # noise levels at which the guided score is tested
STEP = 0.1  # of the difference quotient, in sigma


class Guided:
    """A denoiser around two; see `contracts.Denoiser`, whose attributes are those of the guided network.

    Args:
        denoiser: Network that is guided.
        guide: Network that it is moved away from: with the same classes, or without classes.
        weight: Weight w of the guidance: 1 for none.

    Raises:
        UserError: The two networks have images of another size, or the guide has other classes.
    """

    def __init__(self, denoiser: Denoiser, guide: Denoiser, weight: float) -> None:
        ours, theirs = ((d.img_channels, d.img_resolution) for d in (denoiser, guide))
        if ours != theirs:
            raise UserError(
                f"The guide denoises images of {theirs[1]}x{theirs[1]} with {theirs[0]} channels and the teacher of "
                f"{ours[1]}x{ours[1]} with {ours[0]}: use a guide for the teacher's images."
            )
        if guide.label_dim not in (0, denoiser.label_dim):
            raise UserError(
                f"The guide has {guide.label_dim} classes and the teacher {denoiser.label_dim}: use a guide with the "
                "teacher's classes, or without classes."
            )
        self.denoiser, self.guide, self.weight = denoiser, guide, float(weight)
        self.img_resolution, self.img_channels = denoiser.img_resolution, denoiser.img_channels
        self.label_dim, self.augment_dim = denoiser.label_dim, denoiser.augment_dim
        self.sigma_data = denoiser.sigma_data
        self.sigma_min = max(denoiser.sigma_min, guide.sigma_min)
        self.sigma_max = min(denoiser.sigma_max, guide.sigma_max)

    @property
    def module(self) -> nn.Module:
        """The guided network; the guide is not part of it, so that it is neither trained nor saved."""
        return self.denoiser.module

    @module.setter
    def module(self, module: nn.Module) -> None:
        self.denoiser.module = module

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Denoised images; see `contracts.Denoiser`. A weight of 1 spares the guide's pass."""
        denoised = self.denoiser(x, sigma, class_labels, augment_labels)
        if self.weight == 1:
            return denoised
        labels = class_labels if self.guide.label_dim else None
        augmentation = augment_labels if self.guide.augment_dim == self.augment_dim else None
        reference = self.guide(x, sigma, labels, augmentation)
        return reference + self.weight * (denoised - reference)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """Nearest noise levels that the guided network knows."""
        return self.denoiser.round_sigma(sigma)

    def blocks(self) -> Sequence[nn.Module]:
        """Blocks of the guided network."""
        return self.denoiser.blocks()


def parts_of(denoiser: Denoiser) -> tuple[Denoiser, ...]:
    """The networks of a denoiser: itself, or the guided network and its guide."""
    return (denoiser.denoiser, denoiser.guide) if isinstance(denoiser, Guided) else (denoiser,)


@torch.no_grad()
def precision(denoiser: Denoiser, x: Tensor, sigma: float, noise: Tensor, class_labels: Tensor | None = None) -> float:
    """Mean precision of a denoiser's density around noisy images, the strength by which its score points back.

    With D(x) = x + sigma^2 score(x), it is (1 - J) / sigma^2, where J is the mean of n . dD/dx n over noise n. For
    Gaussian data it is exactly 1 / (s^2 + sigma^2).

    Args:
        denoiser: Denoiser D.
        x: Noisy images, [N, C, R, R].
        sigma: Noise level > 0.
        noise: Standard normal noise n that is independent of x, [N, C, R, R].
        class_labels: [N, label_dim]; None for none.
    """
    h = STEP * sigma
    ends = [denoiser(x + sign * h * noise, sigma, class_labels).double() for sign in (1, -1)]
    response = float(((ends[0] - ends[1]) * noise).sum() / (2 * h * noise.double().square().sum()))
    return (1 - response) / sigma**2


def largest_weight(precision: float, guide_precision: float) -> float:
    """Weight below which the guided precision w P + (1 - w) P_guide is positive; infinite if all weights are.

    Args:
        precision: Precision P of the guided network, > 0.
        guide_precision: Precision P_guide of the guide.
    """
    return math.inf if guide_precision <= precision else guide_precision / (guide_precision - precision)


def caution(guided: Guided, images: Tensor, noise: Tensor, class_labels: Tensor | None = None) -> str | None:
    """A warning if the guided score points outward at one of a few noise levels, so that no density has it.

    Args:
        guided: Guided denoiser.
        images: Samples of its guided network, [N, C, R, R], N at least 2.
        noise: Standard normal noise, [N, C, R, R], on the device of the images.
        class_labels: [N, label_dim]; None for none.
    """
    if guided.weight <= 1:
        return None
    theirs = class_labels if guided.guide.label_dim else None
    limits = {}
    for wanted in SIGMAS:
        low, high = usable_sigmas(guided)
        sigma = float(guided.round_sigma(torch.tensor(min(max(wanted, low), high))))
        x = images + sigma * noise
        ours = precision(guided.denoiser, x, sigma, noise.roll(1, 0), class_labels)
        reference = precision(guided.guide, x, sigma, noise.roll(1, 0), theirs)
        limits[largest_weight(ours, reference)] = sigma
    limit = min(limits)
    if guided.weight < limit:
        return None
    return (
        f"Warning: With --guidance={guided.weight:g} there is no proper density: at sigma {limits[limit]:g} the guide "
        "holds images so much closer together than the teacher does that the guided teacher pushes them apart without "
        f"end. Use a guidance below {limit:.3g}, or a guide whose images vary more."
    )
