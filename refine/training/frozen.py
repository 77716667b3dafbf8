"""Networks that gradients pass through without changing them, and the training mode that turns dropout on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from refine.contracts import Denoiser, Generator
from refine.diffusion.guidance import Guided

Contract = TypeVar("Contract", Generator, Denoiser)


def frozen_copy(network: Contract, device: torch.device) -> Contract:
    """Copy of a network on a device, with `requires_grad` off; of a guided one, with a copy of the guide."""
    if isinstance(network, Guided):
        guided, guide = (frozen_copy(part, device) for part in (network.denoiser, network.guide))
        return Guided(guided, guide, network.weight)
    network = copy.deepcopy(network)
    network.module = network.module.to(device).requires_grad_(False)
    return network


def set_training(module: torch.nn.Module, mode: bool) -> None:
    """Sets a module's training mode, only if it differs: visiting all of a network's modules takes milliseconds."""
    if module.training != mode:
        module.train(mode)


@contextmanager
def frozen(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Lets gradients pass through networks to the generator without accumulating in the networks' parameters."""
    for module in modules:
        module.requires_grad_(False)
    try:
        yield
    finally:
        for module in modules:
            module.requires_grad_(True)
