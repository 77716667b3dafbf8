"""Images of a generator, by number: image i depends on the seed and on i alone.

Latents and labels come in blocks of 64 from (seed, stream, block), noise from (seed, stream, i). So batches of any
size, and any number of processes, see the same images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.contracts import Generator
from refine.files.images import require_finite, to_uint8
from refine.pair.resize import resize
from refine.runtime.random import stream_generator, stream_seed
from refine.runtime.tf32 import exact_convolutions

BLOCK = 64


@dataclass(frozen=True)
class Labels:
    """Distribution of labels: those of a data set's images, each with the same probability.

    Attributes:
        counts: Images of each class [K] int64; None if labels are vectors.
        vectors: Label of each image [N, dim] float32; None if labels are classes.
    """

    counts: np.ndarray | None = None
    vectors: np.ndarray | None = None

    @classmethod
    def of(cls, raw_labels: np.ndarray) -> Labels:
        """Distribution of the classes [N] or vectors [N, dim] of a data set's images."""
        return cls(counts=np.bincount(raw_labels)) if raw_labels.ndim == 1 else cls(vectors=raw_labels)

    @classmethod
    def uniform(cls, num_classes: int) -> Labels:
        """Every class with the same probability."""
        return cls(counts=np.ones(num_classes, dtype=np.int64))

    def widened(self, num_classes: int) -> Labels:
        """Distribution over so many classes, of which the last ones do not occur."""
        assert self.counts is not None
        return Labels(counts=np.pad(self.counts, (0, num_classes - len(self.counts))))

    @property
    def dim(self) -> int:
        """Width of a label."""
        return len(self.counts) if self.counts is not None else self.vectors.shape[1] if self.vectors is not None else 0

    def rows(self, numbers: Tensor) -> Tensor:
        """Labels [N, dim] for uniform numbers [N] in [0, 1)."""
        if self.counts is not None:
            ends = torch.from_numpy(np.cumsum(self.counts))
            classes = torch.searchsorted(ends, (numbers * int(ends[-1])).long(), right=True)
            return torch.nn.functional.one_hot(classes, len(ends)).float()
        assert self.vectors is not None
        return torch.from_numpy(self.vectors)[(numbers * len(self.vectors)).long()]


def draw_latents(indices: range, width: int, seed: int, stream: str = "metric latents") -> Tensor:
    """Standard normal [len(indices), width] float32 on the CPU."""
    return _from_blocks(indices, lambda block: torch.randn(BLOCK, width, generator=_block(seed, stream, block)))


def draw_uniform(indices: range, seed: int, stream: str) -> Tensor:
    """Uniform on [0, 1), [len(indices)] float64 on the CPU."""
    return _from_blocks(
        indices, lambda block: torch.rand(BLOCK, generator=_block(seed, stream, block), dtype=torch.float64)
    )


def draw_labels(indices: range, labels: Labels | None, c_dim: int, seed: int) -> Tensor:
    """Labels [len(indices), c_dim]; without `labels`, one-hot vectors of uniform classes."""
    if c_dim == 0:
        return torch.zeros(len(indices), 0)
    return (labels or Labels.uniform(c_dim)).rows(draw_uniform(indices, seed, "metric labels"))


def _block(seed: int, stream: str, block: int) -> torch.Generator:
    return stream_generator(seed, stream, block)


def _from_blocks(indices: range, draw: Any) -> Tensor:
    if not len(indices):
        return draw(0)[:0]
    blocks = range(indices[0] // BLOCK, indices[-1] // BLOCK + 1)
    drawn = torch.cat([draw(block) for block in blocks])
    first = indices[0] - blocks[0] * BLOCK
    return drawn[first : first + len(indices)]


# -- noise --------------------------------------------------------------------------------------------


def noise_inputs(generator: Generator) -> list[torch.nn.Module]:
    """Layers whose noise `noise_mode` decides, in their order in the network."""
    if not getattr(generator, "takes_noise_mode", True):
        return []
    layers = generator.module.modules()
    return [layer for layer in layers if isinstance(layer._buffers.get("noise_const"), Tensor)]


def draw_noise(generator: Generator, indices: Sequence[int], seed: int, stream: str) -> list[Tensor]:
    """Noise [len(indices), 1, R, R] for each layer of `noise_inputs`, on its device."""
    layers: list[Any] = [module.noise_const for module in noise_inputs(generator)]
    rows: list[list[Tensor]] = [[] for _ in layers]
    for index in indices if layers else ():
        draw = torch.Generator(layers[0].device).manual_seed(stream_seed(seed, stream, index))
        for row, const in zip(rows, layers, strict=True):
            row.append(torch.randn(const.shape, generator=draw, device=const.device))
    return [torch.stack(row)[:, None] for row in rows]


@contextmanager
def with_noise(generator: Generator, noise: Sequence[Tensor]) -> Iterator[None]:
    """Context in which `noise_mode="const"` adds the given noise, to each image of the batch its own."""
    layers = noise_inputs(generator)
    previous = [layer._buffers["noise_const"] for layer in layers]
    try:
        for layer, value in zip(layers, noise, strict=True):
            layer._buffers["noise_const"] = value
        yield
    finally:
        for layer, stored in zip(layers, previous, strict=True):
            layer._buffers["noise_const"] = stored


def images_at_once(resolution: int) -> int:
    """Images per pass of a generator: 4 of 1024 pixels, and as many pixels of smaller ones."""
    return max(4 * 1024**2 // resolution**2, 1)


# -- images -------------------------------------------------------------------------------------------


def for_detector(images: Tensor) -> Tensor:
    """Gray images as RGB; others as they are."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


@dataclass(frozen=True)
class Sampler:
    """Draws a generator's images by their number.

    Attributes:
        generator: Generator in evaluation mode.
        device: Its device.
        labels: Distribution of labels, as wide as the generator's; None: uniform.
        seed: Seed of latents, labels and noise.
        noise_mode: `random`, `const` or `none`.
        truncation_psi: Truncation; 1: none.
        resolution: Size that images are reduced to; None: as they are drawn.
        resample: Filter for this, a key of `bridge.FILTERS`.
    """

    generator: Generator
    device: torch.device
    labels: Labels | None = None
    seed: int = 0
    noise_mode: str = "random"
    truncation_psi: float = 1.0
    resolution: int | None = None
    resample: str = "lanczos"

    @torch.no_grad()
    def images(self, indices: range) -> Tensor:
        """Images number i for each of the indices, uint8 [N, C, R, R].

        Raises:
            UserError: An image is not finite.
        """
        shape = self.generator.z_shape
        z = draw_latents(indices, math.prod(shape), self.seed).reshape(-1, *shape).to(self.device)
        c = draw_labels(indices, self.labels, self.generator.c_dim, self.seed).to(self.device)
        size = images_at_once(self.generator.img_resolution)
        images = torch.cat(
            [
                self._draw(zs, cs, indices[first : first + size])
                for zs, cs, first in zip(z.split(size), c.split(size), range(0, len(indices), size), strict=True)
            ]
        )
        require_finite(images, "The generator", "give an earlier snapshot")
        if self.resolution is not None:
            images = resize(images.float(), self.resolution, self.resample)
        return to_uint8(images)

    def _draw(self, z: Tensor, c: Tensor, indices: range) -> Tensor:
        psi = self.truncation_psi
        if self.noise_mode == "random" and noise_inputs(self.generator):
            noise = draw_noise(self.generator, indices, self.seed, "metric noise")
            with exact_convolutions(), with_noise(self.generator, noise):
                return self.generator(z, c, noise_mode="const", truncation_psi=psi).images
        with exact_convolutions():
            return self.generator(z, c, noise_mode=self.noise_mode, truncation_psi=psi).images
