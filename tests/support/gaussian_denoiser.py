"""Denoiser of a Gaussian with equal variances, in closed form."""

from __future__ import annotations

import math

import torch


class GaussianDenoiser:
    """Estimate E[x0 | x] for x0 ~ N(mean, s^2) in every pixel."""

    augment_dim, sigma_data, sigma_min = 0, 0.5, 0.0

    def __init__(self, mean, s, *, img_resolution=8, img_channels=3, label_dim=0, augment_dim=0, sigma_max=math.inf):
        self.mean, self.s, self.sigma_max = mean, s, sigma_max
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.label_dim, self.augment_dim = label_dim, augment_dim
        self.module = torch.nn.Module()

    def __call__(self, x, sigma, class_labels=None, augment_labels=None):
        sigma = torch.as_tensor(sigma, dtype=x.dtype)
        sigma = sigma.reshape(-1, 1, 1, 1) if sigma.ndim else sigma
        return self.mean + self.s**2 / (self.s**2 + sigma**2) * (x - self.mean)

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def blocks(self):
        return ()
