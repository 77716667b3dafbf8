"""Inputs of a step: latents, labels, noise levels and noise, from (seed, stream, step) alone.

Everything is drawn for the global batch, on the CPU, and each process takes its part: the numbers depend neither on
the device nor on how many processes share the work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from refine.diffusion import augment
from refine.diffusion.noise_levels import Distribution
from refine.runtime.random import Seeds, stream_generator


@dataclass(frozen=True)
class StepInputs:
    """Inputs of a (micro-)batch of N images.

    Attributes:
        z: Latents, [N, *z_shape].
        c: One-hot labels, [N, c_dim].
        sigma: Noise levels of the generator's gradient, [N]; empty, as `noise` is, where there is none.
        noise: [N, C, R, R] at the teacher's resolution.
        fake_sigma: Noise levels that the fake score is fitted at, [N]; empty, as the next two are, where it is not.
        fake_noise: [N, C, R, R].
        augmentation: Augmentation of the images that the fake score is fitted to, [N, 8]; see `augment.PARAMETERS`.
        seeds: Seeds for what PyTorch's default generator draws: dropout and the generator's own noise.
    """

    z: Tensor
    c: Tensor
    sigma: Tensor
    noise: Tensor
    fake_sigma: Tensor
    fake_noise: Tensor
    augmentation: Tensor
    seeds: Seeds

    def part(self, which: slice, index: int = 0) -> StepInputs:
        """Inputs of some of the images, as the micro-batch of that number."""
        return replace(
            self,
            **{name: getattr(self, name)[which] for name in _TENSORS},
            seeds=replace(self.seeds, index=index),
        )

    def to(self, device: torch.device) -> StepInputs:
        """The same inputs on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})


_TENSORS = tuple(field.name for field in fields(StepInputs) if field.name != "seeds")


@dataclass(frozen=True)
class InputShape:
    """Sizes of the inputs of a step.

    Attributes:
        batch: Images of the global batch.
        z_shape: Shape of one latent.
        c_dim: Classes; 0 for an unconditional generator.
        img_channels: Channels of the noise.
        img_resolution: Pixels of the noise, which are the teacher's.
        augment_p: Probability of each augmentation.
    """

    batch: int
    z_shape: tuple[int, ...]
    c_dim: int
    img_channels: int
    img_resolution: int
    augment_p: float = 0.0


def draw(
    shape: InputShape, sigma: Distribution | None, fake_sigma: Distribution | None, seed: int, stream: str, step: int
) -> StepInputs:
    """Inputs of one update, for the global batch, on the CPU.

    Each kind of number has a stream of its own, so that leaving one out changes no other.

    Args:
        shape: Sizes.
        sigma: Distribution of the noise levels of the generator's gradient; None where it is not computed.
        fake_sigma: Distribution of those that the fake score is fitted at; None where it is not.
        seed: Seed of the run.
        stream: Update of the step, such as `generator` or `fake0`.
        step: Number of the step.
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
    return StepInputs(
        z=torch.randn(shape.batch, *shape.z_shape, generator=source("z")),
        c=c,
        sigma=levels("sigma", sigma),
        noise=normal("noise", sigma is not None),
        fake_sigma=levels("fake_sigma", fake_sigma),
        fake_noise=normal("fake_noise", fake_sigma is not None),
        augmentation=augment.draw(shape.batch if fake_sigma else 0, shape.augment_p, source("augmentation")),
        seeds=Seeds(seed, stream, step, 0),
    )


def micro_batches(count: int, size: int | None) -> Iterator[slice]:
    """Slices of `count` images, each of `size` (None for all at once) but perhaps the last."""
    size = size or count
    for index in range(math.ceil(count / size) if size else 0):
        yield slice(index * size, min((index + 1) * size, count))
