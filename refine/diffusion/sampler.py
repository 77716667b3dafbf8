"""Heun sampler of EDM (Karras et al., arXiv 2206.00364)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from refine.contracts import Denoiser


def karras_sigmas(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80, rho: float = 7) -> Tensor:
    """Noise levels from sigma_max down to sigma_min, evenly spaced in sigma^(1/rho) (eq. 5).

    Args:
        num_steps: Number of noise levels, >= 1.
        sigma_min: Smallest noise level, > 0.
        sigma_max: Largest noise level.
        rho: Exponent of the spacing.

    Returns:
        [num_steps] float64; [sigma_max] for a single step. The final 0 of the paper is not included.

    Raises:
        ValueError: `num_steps` is below 1, or 0 < sigma_min <= sigma_max < infinity does not hold.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    if not 0 < sigma_min <= sigma_max < math.inf:
        raise ValueError(
            f"0 < sigma_min <= sigma_max < inf must hold, unlike sigma_min={sigma_min}, sigma_max={sigma_max}"
        )
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.linspace(*ends, num_steps, dtype=torch.float64) ** rho


@dataclass(frozen=True)
class HeunOptions:
    """Options of `heun_sample`; the defaults are the paper's deterministic sampler.

    Attributes:
        num_steps: Number of noise levels; the network is evaluated 2 num_steps - 1 times.
        sigma_min: Smallest noise level, raised to the network's own minimum if that is larger.
        sigma_max: Largest noise level, lowered to the network's own maximum if that is smaller.
        rho: Exponent of the spacing of noise levels.
        S_churn: Amount of fresh noise; 0 for a deterministic sampler.
        S_min: Smallest noise level at which fresh noise is added.
        S_max: Largest noise level at which fresh noise is added.
        S_noise: Standard deviation of the fresh noise.
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
        denoiser: Network D.
        latents: Standard normal noise, [N, C, R, R].
        class_labels: Class labels, [N, label_dim]; None for none.
        options: Options of the sampler; None for the defaults.
        generator: Random number generator for S_churn, on the device of `latents`; None for PyTorch's default.

    Returns:
        Images [N, C, R, R] float64, nominally in [-1, 1], not clamped.
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
