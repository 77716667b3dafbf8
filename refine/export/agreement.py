"""Comparison of an exported generator with its source, by their images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from refine.errors import UserError
from refine.networks.sampling import label, seed_input

TOLERANCE = 1e-4  # of images in [-1, 1]


@dataclass(frozen=True)
class Probe:
    """Inputs at which images are compared.

    Attributes:
        z: Latents [N, *z_shape].
        c: Labels [N, c_dim].
        psis: Truncations; 1 alone would not show a wrong average w.
    """

    z: Tensor
    c: Tensor
    psis: tuple[float, ...] = field(default=(1.0, 0.7))

    @classmethod
    def of(cls, generator: Any, count: int = 2) -> Probe:
        """Seeds 0, 1, ... with the classes in turn."""
        seeds = range(count)
        classes = [seed % generator.c_dim if generator.c_dim else None for seed in seeds]
        z = torch.cat([seed_input(generator, seed, index).z for seed, index in zip(seeds, classes, strict=True)])
        c = torch.cat([label(generator.c_dim, index) for index in classes])
        has_average = getattr(getattr(generator, "mapping", None), "w_avg", None) is not None
        return cls(z, c, (1.0, 0.7) if has_average else (1.0,))

    def images(self, generator: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
        """All images [len(psis) * N, C, H, W] that a function of (z, c, psi) makes."""
        with torch.no_grad():
            return torch.cat([generator(self.z, self.c, psi) for psi in self.psis])


def images_of_network(network: Any) -> Callable[[Tensor, Tensor, float], Tensor]:
    """A generator as a function of (z, c, psi), with the noise that is stored in it."""
    return lambda z, c, psi: network(z, c, truncation_psi=psi, noise_mode="const").float().cpu()


def agreement(expected: Tensor, found: Tensor, what: str) -> float:
    """The largest difference of any pixel, images being in [-1, 1] (a larger range counts as that).

    Raises:
        UserError: The difference is above 1e-4.
    """
    if found.shape != expected.shape:
        raise UserError(f"{what} makes images {list(found.shape[1:])} instead of {list(expected.shape[1:])}.")
    difference = float((found - expected).abs().max() / max(1.0, float(expected.abs().max())))
    if not difference <= TOLERANCE:  # also where it is not a number
        raise UserError(
            f"{what} was not written because it does not make the same images (they differ by {difference:.1e}, and "
            f"{TOLERANCE:.0e} is allowed): choose another --format for this generator."
        )
    return difference
