"""Gaussian images of any size and their exact denoiser: a teacher that knows one kind of image and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SceneDenoiser(nn.Module):
    """The exact denoiser of N(mean, K) over images [C, R, R], per class: D = mean + K (K + sigma^2)^-1 (x - mean).

    Args:
        means: [K, C, R, R]; K > 1 classes have a label each.
        covariance: [C R R, C R R], of every class.
    """

    sigma_min, sigma_max, sigma_data = 0.0, float("inf"), 0.5

    def __init__(self, means: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.means = nn.Parameter(means, requires_grad=False)
        self.label_dim = len(means) if len(means) > 1 else 0
        self.img_channels, self.img_resolution = means.shape[1], means.shape[2]
        self.variances, self.axes = torch.linalg.eigh(covariance)

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def forward(self, x, sigma, class_labels=None, augment_labels=None, force_fp32=False):
        mean = self.means[:1] if class_labels is None else _mix(class_labels, self.means)
        squared = torch.as_tensor(sigma).reshape(-1, 1).double() ** 2
        variances = self.variances.clamp(min=0)
        along = (x.double() - mean).flatten(1) @ self.axes * (variances / (variances + squared))
        return (mean + (along @ self.axes.t()).reshape(x.shape)).to(x.dtype)


class SceneGenerator(nn.Module):
    """Draws from N(mean, covariance), and then does `spoil` to the images [N, C, R, R]."""

    def __init__(self, means: Tensor, covariance: Tensor, spoil=lambda x: x) -> None:
        super().__init__()
        self.means = nn.Parameter(means, requires_grad=False)
        variances, axes = torch.linalg.eigh(covariance)
        self.root = axes * variances.clamp(min=0).sqrt()
        self.z_dim, self.w_dim = len(covariance), len(covariance)
        self.c_dim = len(means) if len(means) > 1 else 0
        self.img_channels, self.img_resolution = means.shape[1], means.shape[2]
        self.spoil = spoil
        self.mapping = lambda z, c, truncation_psi=1.0: torch.cat([z, c], dim=1)[:, None]

    def synthesis(self, ws, noise_mode="random", force_fp32=False):
        z, c = ws[:, 0, : self.z_dim].double(), ws[:, 0, self.z_dim :]
        mean = _mix(c, self.means) if self.c_dim else self.means[:1]
        return self.spoil((mean + (z @ self.root.t()).reshape(len(z), *self.means.shape[1:])).float())


def _mix(labels: Tensor, means: Tensor) -> Tensor:
    return torch.einsum("nk,kchw->nchw", labels.double(), means)


def scenes(resolution: int, channels: int = 3, num_classes: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(means, covariance), float64: smooth images that no mirror, swap or crop leaves alike."""
    rng = torch.Generator().manual_seed(seed)
    coarse = 0.5 * torch.randn(num_classes, channels, 3, 3, generator=rng, dtype=torch.float64)
    means = nn.functional.interpolate(coarse, size=(resolution, resolution), mode="bilinear", align_corners=True)
    axis = torch.arange(resolution, dtype=torch.float64) / resolution
    near = torch.exp(-((axis[:, None] - axis[None]) ** 2) / (2 * 0.15**2))
    colors = 0.7 * torch.eye(channels, dtype=torch.float64) + 0.3
    # More contrast at the top left: the covariance knows up from down as well.
    contrast = (0.15 + 0.25 * (1 - axis)[:, None] * (1 - 0.5 * axis)[None]).flatten().repeat(channels)
    covariance = torch.kron(colors, torch.kron(near, near)) * contrast[:, None] * contrast[None]
    return means, covariance + 1e-4 * torch.eye(len(covariance), dtype=torch.float64)
