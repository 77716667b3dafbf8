"""Adapter from EDM's preconditioned networks to the contract of a denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from refine.contracts import Denoiser
from refine.networks.edm2_layers import EDM2Block
from refine.networks.edm_layers import UNetBlock

DEFAULT_SIGMA_DATA = 0.5  # of the EDM paper, for networks that name none


class Preconditioned:
    """A denoiser made of a preconditioned U-Net; see `contracts.Denoiser`.

    Args:
        module: The network, with `img_resolution`, `img_channels`, `label_dim`, `sigma_min`, `sigma_max` and
            `round_sigma`.
    """

    def __init__(self, module: nn.Module) -> None:
        network: Any = module
        self.module = network
        self.img_resolution, self.img_channels = int(network.img_resolution), int(network.img_channels)
        self.label_dim = int(network.label_dim)
        map_augment = getattr(getattr(network, "model", None), "map_augment", None)
        self.augment_dim = int(getattr(map_augment, "in_features", 0))
        self.sigma_data = float(getattr(network, "sigma_data", DEFAULT_SIGMA_DATA))
        self.sigma_min, self.sigma_max = float(network.sigma_min), float(network.sigma_max)

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Denoised images; see `contracts.Denoiser`."""
        # By keyword: the networks of EDM's own code have another parameter in that place.
        more = {} if augment_labels is None else {"augment_labels": augment_labels}
        denoised: Tensor = self.module(x, sigma, class_labels, **more)
        return denoised

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """Nearest noise levels that the network knows."""
        rounded: Tensor = self.module.round_sigma(sigma)
        return rounded

    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of the U-Net."""
        return [module for module in self.module.modules() if isinstance(module, UNetBlock | EDM2Block)]


def as_denoiser(module: nn.Module) -> Denoiser:
    """A network behind the contract of a denoiser."""
    return Preconditioned(module)
