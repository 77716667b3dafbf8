"""Adapter from StyleGAN's family, a mapping and a synthesis network, to the contract of a generator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from refine.contracts import Generator, GeneratorOutput
from refine.errors import UserError
from refine.networks import r3gan, stylegan3, stylegan3_layers, stylegan_xl
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
        """Resolution of the block, or the sampling rate of StyleGAN3's layer; None for the mapping network."""
        match = re.match(r"synthesis\.b(\d+)\.", parameter)
        if match:
            return int(match[1])
        match = re.match(r"synthesis\.(input|L\d+_\d+_\d+)\.", parameter)
        part: Any = getattr(self.module.synthesis, match[1]) if match else None
        if isinstance(part, stylegan3_layers.SynthesisLayer):
            return int(part.options.out_sampling_rate)
        return int(part.sampling_rate) if isinstance(part, stylegan3_layers.SynthesisInput) else None

    def blocks(self) -> Sequence[nn.Module]:
        """The synthesis blocks, or StyleGAN3's layers."""
        kinds = (SynthesisBlock, stylegan3_layers.SynthesisLayer)
        return [module for module in self.module.modules() if isinstance(module, kinds)]

    def after_step(self, w_mean: Tensor | None) -> None:
        """Moves `mapping.w_avg` toward the mean of w, if the mapping network keeps one and is trained.

        The magnitudes of StyleGAN3's trained layers move too.
        """
        mapping = self.module.mapping
        if w_mean is not None and any(p.requires_grad for p in mapping.parameters()):
            if isinstance(mapping, stylegan_xl.MappingNetwork):  # one average for each class
                stylegan_xl.update_class_averages(mapping)
            else:
                update_w_avg(mapping, w_mean)
        if isinstance(self.module.synthesis, stylegan3.SynthesisNetwork):
            stylegan3.update_magnitudes(self.module.synthesis)


def as_generator(module: nn.Module, name: str = "The network") -> Generator:
    """A network behind the contract of a generator.

    Args:
        module: A generator of the StyleGAN family, or a one-step generator.
        name: Beginning of the sentence of an error, such as the file and the class.

    Raises:
        UserError: The network is not made of a mapping and a synthesis network.
    """
    if isinstance(module, r3gan.Generator):
        return r3gan.R3GAN(module)
    if isinstance(module, OneStep):
        return OneStepGenerator(module)
    if not (hasattr(module, "mapping") and hasattr(module, "synthesis")):
        raise UserError(
            f"{name} is not made of a mapping and a synthesis network, as StyleGAN's generators are: "
            "use a pickle of StyleGAN2, StyleGAN2-ADA or StyleGAN3."
        )
    return StyleBased(module)
