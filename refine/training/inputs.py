"""Inputs of a step: latents, labels, noise levels and noise, as functions of (seed, stream, step).

All inputs are drawn for the global batch, on the CPU, and each process takes its part: the numbers depend neither on
the device nor on the number of processes.
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
        sigma: Noise levels of the generator's gradient, [N]; empty if the update computes no such gradient.
        noise: Noise of the generator's gradient at the teacher's resolution, [N, C, R, R]; empty like `sigma`.
        fake_sigma: Noise levels of the fake score's training, [N]; empty if the update does not train the fake score.
        fake_noise: Noise of the fake score's training, [N, C, R, R]; empty like `fake_sigma`.
        augmentation: Augmentation parameters of the fake score's training images, [N, 8], in the order of
            `augment.PARAMETERS`; empty like `fake_sigma`.
        seeds: Seeds for PyTorch's default generator, which draws dropout masks and the generator's noise inputs.
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
        """Inputs of some of the images.

        Args:
            which: Slice of the images.
            index: Index of the micro-batch that they form.
        """
        return replace(
            self,
            **{name: getattr(self, name)[which] for name in _TENSORS},
            seeds=replace(self.seeds, index=index),
        )

    def to(self, device: torch.device) -> StepInputs:
        """Copy of the inputs on a device."""
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
        img_resolution: Height and width of the noise in pixels, which are those of the teacher's images.
        augment_p: Probability of each augmentation, in [0, 1].
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
    """Draws the inputs of one update, for the global batch, on the CPU.

    Each kind of input has a stream of its own, so that leaving one out changes no other.

    Args:
        shape: Sizes of the inputs.
        sigma: Noise-level distribution of the generator's gradient; None if the update computes no such gradient.
        fake_sigma: Noise-level distribution of the fake score's training; None if the update does not train it.
        seed: Seed of the run.
        stream: Name of the update within the step, such as `generator` or `fake0`.
        step: Index of the step.
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
    """Slices of `count` images into micro-batches.

    Args:
        count: Number of images.
        size: Images per slice; the last slice may be smaller. None for one slice.
    """
    size = size or count
    for index in range(math.ceil(count / size) if size else 0):
        yield slice(index * size, min((index + 1) * size, count))
