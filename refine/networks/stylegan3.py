"""The StyleGAN3 generator, in its translation- and its rotation-equivariant form, under the names of the checkpoints.

Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv 2106.12423). As in `stylegan2`, every tensor of a
module is a parameter or a persistent buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from refine.networks.stylegan2 import MappingNetwork
from refine.networks.stylegan3_layers import SynthesisInput, SynthesisLayer
from refine.networks.stylegan3_options import (
    GeneratorOptions,
    SynthesisOptions,
    options_from_init_kwargs,
    plan,
)
from refine.runtime import distributed


class SynthesisNetwork(nn.Module):
    """Network from intermediate latents to images: `input`, then the layers of `layer_names`."""

    def __init__(self, w_dim: int, img_resolution: int, img_channels: int, options: SynthesisOptions) -> None:
        super().__init__()
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.output_scale = options.output_scale
        layers = plan(w_dim, img_resolution, img_channels, options)
        self.input = SynthesisInput(layers.input)
        self.layer_names = [name for name, _ in layers.layers]
        for name, layer in layers.layers:
            self.add_module(name, SynthesisLayer(layer))
        self.num_ws = len(self.layer_names) + 1
        self.magnitudes = Magnitudes()

    def forward(self, ws: Tensor, noise_mode: str = "const", force_fp32: bool = False) -> Tensor:
        """Maps ws [N, num_ws, w_dim] to images [N, img_channels, img_resolution, img_resolution].

        Args:
            ws: One w for the input and one for each layer; different ones mix styles.
            noise_mode: Ignored, because StyleGAN3 has no noise inputs.
            force_fp32: Whether to compute in float32 in layers made for float16; without CUDA, all layers do.

        Raises:
            ValueError: `ws` has another shape.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws must have shape [N, {self.num_ws}, {self.w_dim}], not {list(ws.shape)}")
        layers = self.layers()
        is_trained = torch.is_grad_enabled() and any(layer.weight.requires_grad for layer in layers)
        x = self.input(ws[:, 0])
        seen = []
        for layer, w in zip(layers, ws[:, 1:].unbind(1), strict=True):
            if is_trained:
                seen.append(x.detach().float().square().mean([1, 2, 3]).sum())
            x = layer(x, w, force_fp32=force_fp32)
        if is_trained:
            self.magnitudes.add(torch.stack(seen), len(ws))
        return x.to(ws.dtype) * self.output_scale

    def layers(self) -> list[SynthesisLayer]:
        """The layers in the order of execution."""
        found = [self.get_submodule(name) for name in self.layer_names]
        return [layer for layer in found if isinstance(layer, SynthesisLayer)]


class Magnitudes:
    """Mean squares of the layers' inputs, collected from passes with gradients until the layers take them.

    NVIDIA's network moves each layer's `magnitude_ema` inside the forward call. Here it moves after a step, as `w_avg`
    does: gradients then belong to one function, and nothing depends on how a step is divided.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, sums: Tensor, count: int) -> None:
        """Adds a pass.

        Args:
            sums: Sum over the images of the mean square of each layer's input, [layers].
            count: Number of images.
        """
        self._sum, self._count = sums if self._sum is None else self._sum + sums, self._count + count

    def take(self) -> tuple[Tensor | None, int]:
        """Returns the sums and the number of images, and begins again."""
        found = self._sum, self._count
        self._sum, self._count = None, 0
        return found


@torch.no_grad()
def update_magnitudes(synthesis: SynthesisNetwork) -> None:
    """Moves `magnitude_ema` of the trained layers toward the mean square of their inputs in passes with gradients.

    The passes since the last call count, over all processes; without any, nothing changes.

    Args:
        synthesis: Synthesis network.
    """
    layers = synthesis.layers()
    total, count = synthesis.magnitudes.take()
    if total is None:
        total = torch.zeros(len(layers), device=layers[0].magnitude_ema.device)
    number = torch.tensor([float(count)], device=total.device)
    distributed.all_reduce_sum_([total, number])
    if number.item() > 0:
        for layer, mean in zip(layers, (total / number).unbind(), strict=True):
            if layer.weight.requires_grad:
                layer.magnitude_ema.copy_(mean.lerp(layer.magnitude_ema, layer.options.magnitude_ema_beta))


class Generator(nn.Module):
    """StyleGAN3 generator: latents and labels to images."""

    def __init__(self, options: GeneratorOptions) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = options.z_dim, options.c_dim, options.w_dim
        self.img_resolution, self.img_channels = options.img_resolution, options.img_channels
        self.synthesis = SynthesisNetwork(self.w_dim, self.img_resolution, self.img_channels, options.synthesis)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(self.z_dim, self.c_dim, self.w_dim, self.num_ws, options.mapping)
        if self.mapping.w_avg is None:  # StyleGAN3 has one even if nothing moves it.
            self.mapping.w_avg = torch.zeros(self.w_dim)

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: str = "const",
        force_fp32: bool = False,
    ) -> Tensor:
        """Generates images.

        Args:
            z: Latents [N, z_dim], normally distributed.
            c: Labels [N, c_dim]; ignored by an unconditional generator.
            truncation_psi: Truncation: 1 for the full distribution, 0 for the average image.
            truncation_cutoff: Number of layers, from the input on, that are truncated; None for all.
            noise_mode: Ignored, because StyleGAN3 has no noise inputs.
            force_fp32: Whether to compute in float32 in layers made for float16; without CUDA, all layers do.

        Returns:
            Images [N, img_channels, img_resolution, img_resolution], float32, nominally in [-1, 1], not clamped.

        Raises:
            ValueError: Latents or labels have another shape.
        """
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, noise_mode=noise_mode, force_fp32=force_fp32)


def generator_from_init_kwargs(init_kwargs: Mapping[str, Any]) -> Generator:
    """Builds the generator that the constructor arguments in a pickle describe, with random weights.

    Args:
        init_kwargs: Constructor arguments (`_init_kwargs`) of the pickled Generator.

    Raises:
        UserError: An argument is unknown, missing or out of range; the message names it.
    """
    return Generator(options_from_init_kwargs(init_kwargs))
