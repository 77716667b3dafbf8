"""How far a generator has moved from where it started, watched at the same few latents all along."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from refine.pair.bridge import Bridge
from refine.pair.high_frequency import high_pass
from refine.runtime.random import stream_generator
from refine.training.inputs import labels_in_turn

NUM_PROBES = 16  # enough for a trend; they cost a forward pass at every tick


class Probe:
    """Images, w and parameters of the starting generator, to compare with.

    Args:
        start: the generator before the first step, on its device.
        bridge: to the teacher.
        seed: of the latents.
    """

    def __init__(self, start: torch.nn.Module, bridge: Bridge, seed: int) -> None:
        generator: Any = start
        self.bridge = bridge
        self.z = torch.randn(NUM_PROBES, generator.z_dim, generator=stream_generator(seed, "probe", 0))
        self.c = labels_in_turn(NUM_PROBES, generator.c_dim)
        self.start_images, _ = self._draw(generator)
        self.start_parameters = {name: p.detach().cpu().clone() for name, p in generator.named_parameters()}

    @torch.no_grad()
    def measure(self, network: torch.nn.Module) -> dict[str, float]:
        """What moved since the start.

        Returns:
            `Drift/parameters`: norm of the parameters' change, relative to their norm at the start.
            `Drift/image`: root mean square change of the images as the teacher sees them.
            `Drift/detail`: the same of what the teacher cannot see; only where it sees less than is drawn.
            `W/std`: standard deviation of w over latents, mean over its dimensions: falls where variety is lost.
        """
        images, w = self._draw(network)
        changed = images - self.start_images
        change = total = 0.0
        for name, parameter in network.named_parameters():
            start = self.start_parameters[name]
            change += float((parameter.detach().cpu() - start).double().square().sum())
            total += float(start.double().square().sum())
        measured = {
            "Drift/parameters": (change / max(total, 1e-30)) ** 0.5,
            "Drift/image": float(self.bridge.images(changed).square().mean().sqrt()),
            "W/std": float(w.std(dim=0).mean()),
        }
        if self.bridge.img_resolution < images.shape[-1]:
            measured["Drift/detail"] = float(high_pass(changed, self.bridge).square().mean().sqrt())
        return measured

    @torch.no_grad()
    def _draw(self, network: Any) -> tuple[Tensor, Tensor]:
        device = next(network.parameters()).device
        images, latents = [], []
        for z, c in zip(self.z.split(4), self.c.split(4), strict=True):
            ws = network.mapping(z.to(device), c.to(device))
            images.append(network.synthesis(ws, noise_mode="const").cpu())
            latents.append(ws[:, 0].cpu())
        return torch.cat(images), torch.cat(latents)
