"""Drift of a generator from its start, measured at the same few latents all along."""

from __future__ import annotations

import torch
from torch import Tensor

from refine.contracts import Generator
from refine.networks.sampling import labels_in_turn
from refine.pair.bridge import Bridge
from refine.pair.high_frequency import high_pass
from refine.runtime.random import stream_generator

NUM_PROBES = 16  # enough for a trend; they cost a forward pass at every tick


class DriftProbe:
    """Images, w and parameters of the starting generator, to compare with.

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

        Returns:
            `Drift/parameters`: Norm of the parameters' change, relative to their norm at the start.
            `Drift/image`: Root mean square change of the images as the teacher sees them.
            `Drift/detail`: The same of detail that the teacher cannot see; only where it sees less than is drawn.
            `W/std`: Standard deviation of w over latents, mean over its dimensions: falls where variety is lost.
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
