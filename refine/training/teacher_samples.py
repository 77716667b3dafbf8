"""Samples of the teacher: the "real" side of a density ratio that needs no data.

The samples are drawn once with EDM's Heun sampler, by all processes together, and cached between runs under a key made
of the teacher's digest and the settings. Labels follow the generator's distribution, with equal shares of all classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from refine.contracts import Denoiser
from refine.diffusion.sampler import HeunOptions, heun_sample
from refine.errors import UserError
from refine.metrics import cache
from refine.networks.sampling import labels_in_turn
from refine.pair.bridge import Bridge
from refine.runtime import distributed
from refine.runtime.random import stream_generator
from refine.training.inputs import micro_batches

log = logging.getLogger("refine")


@dataclass(frozen=True)
class TeacherSamples:
    """Samples of a teacher, on the CPU.

    Attributes:
        images: Images, [K, C, R, R] float32, nominally in [-1, 1].
        c: Labels of the images as the generator numbers classes, one-hot [K, c_dim].
    """

    images: Tensor
    c: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class SampleRequest:
    """Settings that determine the samples.

    Attributes:
        count: Number of samples.
        seed: Seed of the latents.
        c_dim: Classes of the generator; 0 for an unconditional generator.
        heun: Options of the sampler.
    """

    count: int
    seed: int
    c_dim: int
    heun: HeunOptions = field(default_factory=HeunOptions)

    def key(self, teacher_sha256: str, bridge: Bridge) -> str:
        """Key of the samples in the cache."""
        settings = {name: repr(value) for name, value in asdict(self).items() if name != "heun"}
        heun = {name: repr(value) for name, value in asdict(self.heun).items()}
        classes = {"class_map": repr(bridge.class_map), "label_dim": bridge.label_dim}
        return cache.key_of({"teacher samples": teacher_sha256, **settings, **heun, **classes})


def teacher_samples(
    teacher: Denoiser,
    bridge: Bridge,
    request: SampleRequest,
    device: torch.device,
    *,
    teacher_sha256: str | None,
    batch: int,
    refresh: bool = False,
) -> TeacherSamples:
    """Loads samples from the cache, or draws and caches them. All processes have to call this.

    Args:
        teacher: Teacher on `device`, without dropout.
        bridge: Bridge from the generator's labels to the teacher's.
        request: Settings of the samples.
        device: Device to draw on.
        teacher_sha256: SHA-256 of the teacher's file; None for a teacher without a file, whose samples are not cached.
        batch: Images per pass.
        refresh: Whether to draw new samples even if the cache has them.

    Returns:
        Samples, the same on every process.

    Raises:
        UserError: The teacher's samples are not finite.
    """
    c = labels_in_turn(request.count, request.c_dim)
    key = None if teacher_sha256 is None else request.key(teacher_sha256, bridge)
    kept: Mapping[str, np.ndarray] | None = None
    if key is not None and not refresh and distributed.is_rank0():
        kept = cache.load(key)
    if distributed.broadcast(kept is not None):
        images = torch.from_numpy(distributed.broadcast(kept["images"] if kept is not None else None))
        return TeacherSamples(images, c)
    images = torch.cat(distributed.gather(_draw(teacher, bridge, request, c, device, batch)))
    if not images.isfinite().all():
        raise UserError("The teacher's samples are not finite: download the teacher again, or use another teacher.")
    if key is not None and distributed.is_rank0():
        cache.store(key, {"images": images.numpy()})
    return TeacherSamples(images, c)


def _draw(
    teacher: Denoiser, bridge: Bridge, request: SampleRequest, c: Tensor, device: torch.device, batch: int
) -> Tensor:
    """Draws this process's share of the images."""
    passes = 2 * request.heun.num_steps - 1
    log.info(f"Drawing {request.count:,} samples of the teacher for the density ratio ({passes} passes each)")
    shape = (request.count, teacher.img_channels, teacher.img_resolution, teacher.img_resolution)
    part = distributed.share(request.count)
    latents = torch.randn(shape, generator=stream_generator(request.seed, "teacher samples", 0))[part]
    labels = bridge.labels(c[part])
    images = []
    silent = None if distributed.is_rank0() else True
    with tqdm(total=len(latents), desc="teacher samples", unit="img", leave=False, disable=silent) as bar:
        for which in micro_batches(len(latents), batch):
            given = None if labels is None else labels[which].to(device)
            drawn = heun_sample(teacher, latents[which].to(device), given, request.heun)
            images.append(drawn.float().cpu())
            bar.update(len(images[-1]))
    return torch.cat(images) if images else latents
