"""Contracts of generators and denoisers: all that Refine uses of a network outside `refine/networks`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn


class GeneratorOutput(NamedTuple):
    """Result of one pass of a generator.

    Attributes:
        images: [N, C, R, R], nominally in [-1, 1], not clamped.
        w: Intermediate latents of the first layer, [N, w_dim]; None where the architecture has none.
    """

    images: Tensor
    w: Tensor | None


class Generator(Protocol):
    """A network that turns latents and labels into images.

    Attributes:
        module: The network; its parameters and buffers are what is trained, saved and averaged.
        z_shape: Shape of one latent: `(z_dim,)`, or `(C, R, R)` where latents are images of noise.
        c_dim: Width of one-hot class labels; 0 for an unconditional generator.
        img_channels: Channels of an image.
        img_resolution: Height and width of an image in pixels.
    """

    module: nn.Module
    z_shape: tuple[int, ...]
    c_dim: int
    img_channels: int
    img_resolution: int

    def __call__(
        self,
        z: Tensor,
        c: Tensor,
        noise_mode: str = "random",
        truncation_psi: float = 1.0,
        force_fp32: bool = False,
    ) -> GeneratorOutput:
        """Images of latents.

        Args:
            z: Latents, [N, *z_shape], normally distributed.
            c: One-hot labels, [N, c_dim].
            noise_mode: Noise inputs of the architecture: `random` takes new noise from PyTorch's default generator,
                `const` the stored noise, `none` no noise. Ignored by an architecture without noise inputs.
            truncation_psi: 1 for the full distribution, 0 for the average image; ignored without a truncation.
            force_fp32: Compute in float32 also where the network was made for float16.
        """
        ...

    def resolution_of(self, parameter: str) -> int | None:
        """Image resolution in pixels that a parameter, by its name in `module`, works at; None for no single one."""
        ...

    def blocks(self) -> Sequence[nn.Module]:
        """Blocks of the network, to be compiled or checkpointed one by one; empty where they are not known."""
        ...

    def after_step(self, w_mean: Tensor | None) -> None:
        """Update of statistics that the network keeps of itself, after an optimizer step.

        Args:
            w_mean: Mean of `GeneratorOutput.w` over the images of the step, [w_dim].
        """
        ...


class Denoiser(Protocol):
    """An estimate of E[x0 | x0 + sigma n = x], such as a teacher or a fake score.

    Attributes:
        module: The network.
        img_resolution: Height and width of an image in pixels.
        img_channels: Channels of an image.
        label_dim: Width of class labels; 0 for an unconditional denoiser.
        augment_dim: Width of augmentation labels; 0 for a denoiser trained without them.
        sigma_data: Standard deviation of the data that the loss weighting assumes.
        sigma_min: Smallest supported noise level, may be 0.
        sigma_max: Largest supported noise level, may be infinite.
    """

    module: nn.Module
    img_resolution: int
    img_channels: int
    label_dim: int
    augment_dim: int
    sigma_data: float
    sigma_min: float
    sigma_max: float

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Denoised images in float32, [N, C, R, R].

        Args:
            x: Images with noise, [N, C, R, R].
            sigma: Noise levels, [N] or a number.
            class_labels: [N, label_dim]; None for zeros.
            augment_labels: [N, augment_dim]; None for zeros.
        """
        ...

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """Nearest noise levels that the network knows."""
        ...

    def blocks(self) -> Sequence[nn.Module]:
        """Blocks of the network, to be compiled or checkpointed one by one; empty where they are not known."""
        ...
