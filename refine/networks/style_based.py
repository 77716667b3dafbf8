"""Adapter from StyleGAN's family, a mapping and a synthesis network, to the contract of a generator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from refine.contracts import Generator, GeneratorOutput
from refine.errors import UserError
from refine.networks.one_step import OneStep, OneStepGenerator
from refine.networks.stylegan2 import SynthesisBlock, update_w_avg


class StyleBased:
    """A generator made of `mapping` (z to w) and `synthesis` (w to images); see `contracts.Generator`.

    Args:
        module: The network, with `z_dim`, `c_dim`, `img_resolution`, `img_channels`, `mapping` and `synthesis`.
    """

    def __init__(self, module: nn.Module) -> None:
        network: Any = module
        self.module = network
        self.z_shape: tuple[int, ...] = (int(network.z_dim),)
        self.c_dim = int(network.c_dim)
        self.img_channels, self.img_resolution = int(network.img_channels), int(network.img_resolution)

    def __call__(
        self,
        z: Tensor,
        c: Tensor,
        noise_mode: str = "random",
        truncation_psi: float = 1.0,
        force_fp32: bool = False,
    ) -> GeneratorOutput:
        """Images and w; see `contracts.Generator`."""
        ws = self.module.mapping(z, c, truncation_psi=truncation_psi)
        return GeneratorOutput(self.module.synthesis(ws, noise_mode=noise_mode, force_fp32=force_fp32), ws[:, 0])

    def resolution_of(self, parameter: str) -> int | None:
        """Resolution of the synthesis block `b<resolution>`; None for the mapping network."""
        match = re.match(r"synthesis\.b(\d+)\.", parameter)
        return int(match[1]) if match else None

    def blocks(self) -> Sequence[nn.Module]:
        """The synthesis blocks."""
        return [module for module in self.module.modules() if isinstance(module, SynthesisBlock)]

    def after_step(self, w_mean: Tensor | None) -> None:
        """Moves `mapping.w_avg` toward the mean of w, if the mapping network keeps one and is trained."""
        if w_mean is not None and any(p.requires_grad for p in self.module.mapping.parameters()):
            update_w_avg(self.module.mapping, w_mean)


def as_generator(module: nn.Module, name: str = "The network") -> Generator:
    """A network behind the contract of a generator.

    Args:
        module: A generator of the StyleGAN family, or a one-step generator.
        name: Beginning of the sentence of an error, such as the file and the class.

    Raises:
        UserError: The network is not made of a mapping and a synthesis network.
    """
    if isinstance(module, OneStep):
        return OneStepGenerator(module)
    if not (hasattr(module, "mapping") and hasattr(module, "synthesis")):
        raise UserError(
            f"{name} is not made of a mapping and a synthesis network, as StyleGAN's generators are: "
            "use a pickle of StyleGAN2 or StyleGAN2-ADA."
        )
    return StyleBased(module)
