"""Heun's sampler of EDM (Karras et al., arXiv 2206.00364)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from refine.contracts import Denoiser


def karras_sigmas(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80, rho: float = 7) -> Tensor:
    """Noise levels from sigma_max down to sigma_min, evenly spaced in sigma^(1/rho) (eq. 5).

    Returns:
        [num_steps] float64; [sigma_max] for a single step. The final 0 of the paper is not included.

    Raises:
        ValueError: num_steps < 1, or not 0 < sigma_min <= sigma_max < inf.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    if not 0 < sigma_min <= sigma_max < math.inf:
        raise ValueError(f"sigma_min={sigma_min} and sigma_max={sigma_max} must be positive, ordered and finite")
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.linspace(*ends, num_steps, dtype=torch.float64) ** rho


@dataclass(frozen=True)
class HeunOptions:
    """Options of `heun_sample`; the defaults are the paper's deterministic sampler.

    Attributes:
        num_steps: noise levels; the network is evaluated 2 num_steps - 1 times.
        sigma_min: smallest noise level, raised to the network's own minimum.
        sigma_max: largest noise level, lowered to the network's own maximum.
        rho: exponent of the spacing of noise levels.
        S_churn: amount of fresh noise, 0 = deterministic.
        S_min: smallest noise level at which noise is added.
        S_max: largest noise level at which noise is added.
        S_noise: standard deviation of the added noise.
    """

    num_steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80
    rho: float = 7
    S_churn: float = 0
    S_min: float = 0
    S_max: float = math.inf
    S_noise: float = 1


@torch.no_grad()
def heun_sample(
    denoiser: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    options: HeunOptions | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Samples images with Heun's second-order method (algorithm 1; with S_churn > 0, algorithm 2).

    Args:
        denoiser: the network D.
        latents: standard normal noise [N, C, R, R].
        class_labels: [N, label_dim] or None.
        options: None: the defaults.
        generator: source of the noise that S_churn adds, on the device of latents; None: torch's own.

    Returns:
        Images [N, C, R, R] float64, nominal range [-1, 1], not clamped.
    """
    options = options or HeunOptions()
    sigma_min = max(options.sigma_min, denoiser.sigma_min)
    sigma_max = min(options.sigma_max, denoiser.sigma_max)
    grid = karras_sigmas(options.num_steps, sigma_min, sigma_max, options.rho)
    sigmas = [*denoiser.round_sigma(grid).tolist(), 0.0]

    def slope(x: Tensor, sigma: float) -> Tensor:
        denoised = denoiser(x, torch.tensor(sigma, dtype=x.dtype, device=x.device), class_labels)
        return (x - denoised.to(x.dtype)) / sigma

    x = latents.to(torch.float64) * sigmas[0]  # float64: the steps at large sigma cancel
    gain = min(options.S_churn / options.num_steps, math.sqrt(2) - 1)
    for sigma, sigma_next in itertools.pairwise(sigmas):
        if gain > 0 and options.S_min <= sigma <= options.S_max:
            raised = float(denoiser.round_sigma(torch.tensor(sigma * (1 + gain), dtype=torch.float64)))
            noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
            x = x + math.sqrt(raised**2 - sigma**2) * options.S_noise * noise
            sigma = raised
        euler_slope = slope(x, sigma)
        x_next = x + (sigma_next - sigma) * euler_slope
        if sigma_next > 0:
            x_next = x + (sigma_next - sigma) * (euler_slope + slope(x_next, sigma_next)) / 2
        x = x_next
    return x
