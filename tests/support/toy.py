"""Points that pose as images [N, D, 1, 1]: mixtures of Gaussians with exact denoisers, and generators to move."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from refine.contracts import GeneratorOutput


class MixtureDenoiser(nn.Module):
    """The exact denoiser of a mixture of isotropic Gaussians, plus a network that is zero at the start.

    As a teacher it is exact; its copy, the fake score, learns what the mixture's form cannot follow.

    Args:
        weights: [K].
        modes: [K, D].
        std: Standard deviation of every mode, along every axis.
    """

    sigma_min, sigma_max, sigma_data, label_dim, img_resolution = 0.0, math.inf, 0.5, 0, 1

    def __init__(self, weights: Tensor, modes: Tensor, std: float) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.modes, self.std = nn.Parameter(modes.clone()), nn.Parameter(torch.tensor(std))
        self.img_channels = modes.shape[1]
        width = 64
        self.net = nn.Sequential(
            nn.Linear(self.img_channels + 3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, self.img_channels),
        )  # fmt: skip
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        return torch.as_tensor(sigma)

    def _posterior(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = self.std**2 + level[:, None] ** 2
        away = x[:, None] - self.modes
        logits = self.weights.log() - away.square().sum(2) / (2 * total)
        return away, total, logits

    def forward(
        self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        points, level = x.flatten(1), torch.as_tensor(sigma, dtype=x.dtype).expand(len(x))
        away, total, logits = self._posterior(points, level)
        means = self.modes + away * (self.std**2 / total)[:, :, None]
        exact = (logits.softmax(1)[:, :, None] * means).sum(1)
        level = level[:, None]
        variance = level**2 + self.sigma_data**2
        waves = torch.cat([points / variance.sqrt(), level.log() / 4, level.log().sin(), level.log().cos()], dim=1)
        return (exact + level * self.sigma_data / variance.sqrt() * self.net(waves.float())).reshape(x.shape)

    def log_density(self, points: Tensor, sigma: Tensor) -> Tensor:
        """Of points [N, D] with noise of level sigma [N]."""
        _, total, logits = self._posterior(points, sigma)
        return (logits - self.img_channels / 2 * (2 * math.pi * total).log()).logsumexp(1)


def two_gaussians() -> MixtureDenoiser:
    return MixtureDenoiser(torch.tensor([0.3, 0.7]), torch.tensor([[-0.8, 0.0], [0.6, 0.3]]), 0.3)


def eight_modes() -> MixtureDenoiser:
    angles = torch.arange(8) * (math.pi / 4)
    return MixtureDenoiser(torch.full([8], 0.125), torch.stack([angles.cos(), angles.sin()], dim=1), 0.15)


class PointGenerator:
    """A module from z [N, z_dim] to points, behind the contract of a generator."""

    c_dim, img_resolution = 0, 1

    def __init__(self, module: nn.Module, z_dim: int = 2, img_channels: int = 2) -> None:
        self.module, self.z_shape, self.img_channels = module, (z_dim,), img_channels

    def __call__(self, z, c, noise_mode="random", truncation_psi=1.0, force_fp32=False) -> GeneratorOutput:
        return GeneratorOutput(self.module(z)[:, :, None, None], None)

    def resolution_of(self, parameter):
        return None

    def blocks(self):
        return ()

    def after_step(self, w_mean):
        pass


class Affine(nn.Module):
    """Mean + root z."""

    def __init__(self, mean: Tensor, root: Tensor) -> None:
        super().__init__()
        self.mean, self.root = nn.Parameter(mean.clone()), nn.Parameter(root.clone())

    def forward(self, z: Tensor) -> Tensor:
        return self.mean + z @ self.root.t()


def perceptron(seed: int = 0, width: int = 64) -> nn.Module:
    """A network with kinks, which let it jump from mode to mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
        )  # fmt: skip


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, unbiased: about 0 for the same law (Székely & Rizzo 2013)."""

    def within(a: Tensor) -> float:
        return float(torch.cdist(a, a).double().sum()) / (len(a) * (len(a) - 1))

    return 2 * float(torch.cdist(x, y).double().mean()) - within(x) - within(y)
