"""Drift of a generator from its start, measured at a few fixed latents."""

from __future__ import annotations

import torch
from torch import Tensor

from refine.contracts import Generator
from refine.networks.sampling import labels_in_turn
from refine.pair.bridge import Bridge
from refine.pair.high_frequency import high_pass
from refine.runtime.random import stream_generator

NUM_PROBES = 16  # enough for a trend; each tick costs a forward pass
IMAGE_RANGE = 2.0  # from -1 to 1; images that have changed by more are no images


class DriftProbe:
    """Images and parameters of the starting generator, for comparison.

    Args:
        start: The generator before the first step, on its device.
        bridge: Bridge to the teacher.
        seed: Seed of the latents.
    """

    def __init__(self, start: Generator, bridge: Bridge, seed: int) -> None:
        self.bridge = bridge
        self.z = torch.randn(NUM_PROBES, *start.z_shape, generator=stream_generator(seed, "probe", 0))
        self.c = labels_in_turn(NUM_PROBES, start.c_dim)
        self.start_images, _ = self._draw(start)
        self.start_parameters = {name: p.detach().cpu().clone() for name, p in start.module.named_parameters()}

    @torch.no_grad()
    def measure(self, generator: Generator) -> dict[str, float]:
        """Changes since the start.

        Args:
            generator: Generator to compare with the starting generator.

        Returns:
            `Drift/parameters`: Norm of the change of all parameters, relative to their norm at the start.
            `Drift/image`: Root mean square change of the images at the teacher's resolution.
            `Drift/detail`: Root mean square change of the detail that the teacher cannot see; only with a teacher of
                lower resolution than the generator.
            `W/std`: Standard deviation of w over latents, averaged over the dimensions of w; it falls with the variety
                of the images. Only with a generator that has w.
        """
        images, w = self._draw(generator)
        changed = images - self.start_images
        change = total = 0.0
        for name, parameter in generator.module.named_parameters():
            start = self.start_parameters[name]
            change += float((parameter.detach().cpu() - start).double().square().sum())
            total += float(start.double().square().sum())
        measured = {
            "Drift/parameters": (change / max(total, 1e-30)) ** 0.5,
            "Drift/image": float(self.bridge.images(changed).square().mean().sqrt()),
        }
        if w is not None:
            measured["W/std"] = float(w.std(dim=0).mean())
        if self.bridge.img_resolution < images.shape[-1]:
            measured["Drift/detail"] = float(high_pass(changed, self.bridge).square().mean().sqrt())
        return measured

    @torch.no_grad()
    def _draw(self, generator: Generator) -> tuple[Tensor, Tensor | None]:
        device = next(generator.module.parameters()).device
        images, latents = [], []
        for z, c in zip(self.z.split(4), self.c.split(4), strict=True):
            drawn = generator(z.to(device), c.to(device), noise_mode="const")
            images.append(drawn.images.cpu())
            if drawn.w is not None:
                latents.append(drawn.w.cpu())
        return torch.cat(images), torch.cat(latents) if latents else None
