"""What a step draws: latents, labels, noise levels and noise, from (seed, stream, step) alone.

Everything is drawn for the global batch, on the CPU, and each process takes its part: the numbers depend neither on
the device nor on how many processes share the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from refine.diffusion import augment
from refine.diffusion.noise_levels import Distribution
from refine.runtime.random import stream_generator


@dataclass(frozen=True)
class Draws:
    """What one (micro-)batch of N images draws.

    Attributes:
        z: latents [N, z_dim].
        c: one-hot labels [N, c_dim].
        sigma: noise levels of the generator's gradient [N]; empty where there is none, as `noise` then is.
        noise: [N, C, R, R] at the teacher's resolution.
        fake_sigma: noise levels at which the fake score is fitted [N]; empty where it is not, as the next two then are.
        fake_noise: [N, C, R, R].
        augmentation: of the images that the fake score is fitted to [N, 8], see `augment.PARAMETERS`.
    """

    z: Tensor
    c: Tensor
    sigma: Tensor
    noise: Tensor
    fake_sigma: Tensor
    fake_noise: Tensor
    augmentation: Tensor

    def part(self, which: slice) -> Draws:
        """Those of some of the images."""
        return Draws(*(getattr(self, field.name)[which] for field in fields(self)))

    def to(self, device: torch.device) -> Draws:
        """The same on a device."""
        return Draws(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class DrawShape:
    """How much a step draws.

    Attributes:
        batch: images of the global batch.
        z_dim: width of the latents.
        c_dim: classes; 0 = unconditional.
        img_channels: of the noise.
        img_resolution: of the noise, the teacher's.
        augment_p: probability of each augmentation.
    """

    batch: int
    z_dim: int
    c_dim: int
    img_channels: int
    img_resolution: int
    augment_p: float = 0.0


def draw(
    shape: DrawShape, sigma: Distribution | None, fake_sigma: Distribution | None, seed: int, stream: str, step: int
) -> Draws:
    """The draws of one update, for the global batch, on the CPU.

    Each kind of number has a stream of its own, so that leaving one out changes no other.

    Args:
        shape: how much.
        sigma: distribution of the noise levels of the generator's gradient; None: it is not computed.
        fake_sigma: distribution of those at which the fake score is fitted; None: it is not.
        seed: of the run.
        stream: which update of the step.
        step: which step.
    """
    pixels = [shape.batch, shape.img_channels, shape.img_resolution, shape.img_resolution]

    def source(name: str) -> torch.Generator:
        return stream_generator(seed, f"{stream}/{name}", step)

    def levels(name: str, distribution: Distribution | None) -> Tensor:
        if distribution is None:
            return torch.empty(0)
        u = torch.rand(shape.batch, generator=source(name), dtype=torch.float64)
        return distribution.quantile(u.clamp(1e-9, 1 - 1e-9)).float()

    def normal(name: str, wanted: bool) -> Tensor:
        return torch.randn(pixels, generator=source(name)) if wanted else torch.empty(0)

    c = torch.zeros(shape.batch, shape.c_dim)
    if shape.c_dim:
        c.scatter_(1, torch.randint(shape.c_dim, [shape.batch, 1], generator=source("c")), 1.0)
    return Draws(
        z=torch.randn(shape.batch, shape.z_dim, generator=source("z")),
        c=c,
        sigma=levels("sigma", sigma),
        noise=normal("noise", sigma is not None),
        fake_sigma=levels("fake_sigma", fake_sigma),
        fake_noise=normal("fake_noise", fake_sigma is not None),
        augmentation=augment.draw(shape.batch if fake_sigma else 0, shape.augment_p, source("augmentation")),
    )


def labels_in_turn(count: int, c_dim: int, columns: int | None = None) -> Tensor:
    """One-hot labels [count, c_dim], the classes in turn; with `columns`, beginning anew in each row of a grid."""
    c = torch.zeros(count, c_dim)
    if c_dim:
        index = torch.arange(count)
        c[index, index % (columns or count) % c_dim] = 1
    return c


def micro_batches(count: int, size: int | None) -> Iterator[slice]:
    """Slices of `count` images, each of `size` (None: all at once) but perhaps the last."""
    size = size or count
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
