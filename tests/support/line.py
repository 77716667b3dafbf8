"""Distributions on the line with exact denoisers, and expectations over (z, n) by Gauss-Hermite quadrature.

A number poses as an image [N, 1, 1, 1]; everything is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from refine.objectives import Objective, Scores


@dataclass(frozen=True)
class Mixture:
    """Sum of w_k N(m_k, s_k^2).

    Attributes:
        weights: [K].
        means: [K].
        stds: [K].
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def log_density(self, x: Tensor, sigma: float) -> Tensor:
        """Logarithm of p_sigma(x), of x's shape."""
        variance = self.stds**2 + sigma**2
        terms = (
            self.weights.log() - (x[..., None] - self.means) ** 2 / (2 * variance) - (2 * math.pi * variance).log() / 2
        )
        return terms.logsumexp(-1)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x0 + sigma n = x], of x's shape."""
        variance = self.stds**2 + sigma**2
        away = x[..., None] - self.means
        posterior = (self.weights.log() - away**2 / (2 * variance) - variance.log() / 2).softmax(-1)
        return (posterior * (self.means + self.stds**2 / variance * away)).sum(-1)


def gaussian(mean: float | Tensor, std: float | Tensor) -> Mixture:
    """N(mean, std^2)."""
    one = torch.ones(1, dtype=torch.float64)
    return Mixture(one, one * mean, one * std)


def mixture(weights: list[float], means: list[float], stds: list[float]) -> Mixture:
    """A mixture from numbers."""
    return Mixture(*(torch.tensor(values, dtype=torch.float64) for values in (weights, means, stds)))


def hermite(num: int = 90) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E over N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def objective_gradient(
    objective: Objective, teacher: Mixture, mu: float, tau: float, sigma: float, *, num: int = 90, detach: bool = False
) -> tuple[float, float]:
    """d/dmu and d/dtau of E L for a generator x0 = mu + tau z, whose law the fake score and the ratio know exactly.

    Args:
        objective: Objective of the loss L.
        teacher: Distribution of the teacher.
        mu: Mean of the generator.
        tau: Standard deviation of the generator.
        sigma: Noise level.
        num: Nodes of the quadrature, of z and of the noise each.
        detach: Whether the logit is constant in x_t.
    """
    nodes, w = hermite(num)
    z, n = nodes.repeat_interleave(num), nodes.repeat(num)
    weights = torch.outer(w, w).flatten()
    parameters = torch.tensor([mu, tau], dtype=torch.float64, requires_grad=True)
    x0 = parameters[0] + parameters[1] * z
    x_t = x0 + sigma * n
    if not objective.through_networks:
        x_t = x_t.detach()
    own = gaussian(mu, tau)
    logit = teacher.log_density(x_t, sigma) - own.log_density(x_t, sigma)
    shape = (-1, 1, 1, 1)
    scores = Scores(
        x0.reshape(shape),
        torch.full_like(z, sigma),
        teacher.denoise(x_t, sigma).reshape(shape),
        own.denoise(x_t, sigma).reshape(shape),
        logit.detach() if detach else logit,
    )
    gradient = torch.autograd.grad((objective.loss(scores) * weights).sum(), parameters)[0]
    return float(gradient[0]), float(gradient[1])


def finite_differences(value, mu: float, tau: float, step: float = 1e-3) -> tuple[float, float]:
    """d/dmu and d/dtau of value(mu, tau), by central differences of fourth order."""

    def slope(function):
        return (8 * (function(step) - function(-step)) - (function(2 * step) - function(-2 * step))) / (12 * step)

    return slope(lambda e: value(mu + e, tau)), slope(lambda e: value(mu, tau + e))
