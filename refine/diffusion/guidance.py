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

FAR = 80.0  # noise level at which images no longer show in the input, only their mean and spread in the estimate


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
def spread(denoiser: Denoiser, noise: Tensor, class_labels: Tensor | None = None) -> float:
    """Standard deviation of a denoiser's images, seen from its answer to noise alone.

    Far above the data, D(sigma n) = mean + s^2 / (s^2 + sigma^2) sigma n for images of variance s^2; the mean cancels
    in the difference of the answers to n and -n. Exact for Gaussian data with equal variances of all pixels.

    Args:
        denoiser: Denoiser D.
        noise: Standard normal noise n, [N, C, R, R], on its device.
        class_labels: [N, label_dim]; None for none.
    """
    low, high = usable_sigmas(denoiser)
    sigma = float(denoiser.round_sigma(torch.tensor(min(max(FAR, low), high))))
    answers = [denoiser(sign * sigma * noise, sigma, class_labels).double() for sign in (1, -1)]
    share = float(((answers[0] - answers[1]) * noise).sum() / (2 * sigma * noise.double().square().sum()))
    return sigma * math.sqrt(max(share, 0) / max(1 - share, 1e-12))


def largest_weight(spread: float, guide_spread: float) -> float:
    """Largest weight below which the guided density exists at every noise level; infinite for a broader guide.

    Args:
        spread: Standard deviation s of the guided network's images.
        guide_spread: Standard deviation s_guide of the guide's.
    """
    return math.inf if guide_spread >= spread else spread**2 / (spread**2 - guide_spread**2)


def caution(guided: Guided, noise: Tensor, class_labels: Tensor | None = None) -> str | None:
    """A warning if the weight is beyond `largest_weight`; None if it is not.

    Args:
        guided: Guided denoiser.
        noise: Standard normal noise, [N, C, R, R], on its device.
        class_labels: [N, label_dim]; None for none.
    """
    if guided.weight <= 1:
        return None
    theirs = class_labels if guided.guide.label_dim else None
    ours, reference = spread(guided.denoiser, noise, class_labels), spread(guided.guide, noise, theirs)
    limit = largest_weight(ours, reference)
    if guided.weight < limit:
        return None
    return (
        f"Warning: With --guidance={guided.weight:g} there is no proper density: the guide's images vary less than the "
        f"teacher's (standard deviation {reference:.3g} instead of {ours:.3g}), so the guided teacher pushes images "
        f"outward without end. Use a guidance below {limit:.3g}, or a guide whose images vary more than the teacher's."
    )
