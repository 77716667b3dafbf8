"""A generator and denoisers for which everything is known in closed form: Gaussians over images [N, 1, 2, 2]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NUM_PIXELS = 4


class _Mapping(nn.Module):
    """w = z."""

    def forward(self, z: Tensor, c: Tensor | None = None, truncation_psi: float = 1.0) -> Tensor:
        return z[:, None]


class _Synthesis(nn.Module):
    def __init__(self, mean: Tensor, root: Tensor) -> None:
        super().__init__()
        self.mean, self.root = nn.Parameter(mean.clone()), nn.Parameter(root.clone())

    def forward(self, ws: Tensor, noise_mode: str = "random", force_fp32: bool = False) -> Tensor:
        return (self.mean + ws[:, 0] @ self.root.t()).reshape(-1, 1, 2, 2)


class GaussianGenerator(nn.Module):
    """x0 = mean + root z: N(mean, root root^T)."""

    z_dim, c_dim, w_dim, num_ws, img_resolution, img_channels = NUM_PIXELS, 0, NUM_PIXELS, 1, 2, 1

    def __init__(self, mean: Tensor, root: Tensor) -> None:
        super().__init__()
        self.mapping, self.synthesis = _Mapping(), _Synthesis(mean, root)

    def covariance(self) -> Tensor:
        """[4, 4]."""
        return (self.synthesis.root @ self.synthesis.root.t()).detach()


class GaussianDenoiser(nn.Module):
    """The exact denoiser of N(mean, root root^T); with trained parameters, the best fake score of any such data."""

    img_resolution, img_channels, label_dim = 2, 1, 0
    sigma_min, sigma_max, sigma_data = 0.0, float("inf"), 0.5

    def __init__(self, mean: Tensor, root: Tensor) -> None:
        super().__init__()
        self.mean, self.root = nn.Parameter(mean.clone()), nn.Parameter(root.clone())

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return torch.as_tensor(sigma)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        force_fp32: bool = False,
    ) -> Tensor:
        mean, root = self.mean.to(x.dtype), self.root.to(x.dtype)
        covariance = root @ root.t()
        noisy = covariance + sigma.reshape(-1, 1, 1).to(x.dtype) ** 2 * torch.eye(NUM_PIXELS, dtype=x.dtype)
        difference = (x.flatten(1) - mean)[:, :, None]
        return (mean + (covariance @ torch.linalg.solve(noisy, difference))[:, :, 0]).reshape(x.shape)
