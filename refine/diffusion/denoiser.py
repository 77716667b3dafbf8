"""Score and noise-level range of a denoiser, in EDM's notation (Karras et al., arXiv 2206.00364).

Noise is additive and Gaussian, x = x0 + sigma n, without any scaling of x. The contract is `contracts.Denoiser`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from refine.contracts import Denoiser

DEFAULT_SIGMA_RANGE = (0.002, 80.0)  # for networks without limits of their own


def usable_sigmas(denoiser: Denoiser) -> tuple[float, float]:
    """Smallest and largest noise level to use: the network's own limits, or EDM's in place of 0 and infinity."""
    low, high = denoiser.sigma_min, denoiser.sigma_max
    return low if low > 0 else DEFAULT_SIGMA_RANGE[0], high if high < math.inf else DEFAULT_SIGMA_RANGE[1]


def score(x: Tensor, denoised: Tensor, sigma: Tensor | float) -> Tensor:
    """Gradient of log p(x; sigma) with respect to x, (D(x; sigma) - x) / sigma^2 (eq. 3).

    Args:
        x: Noisy images, [N, ...].
        denoised: Denoised images D(x; sigma), [N, ...].
        sigma: Noise levels > 0, [N] or a number.
    """
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    if sigma.ndim == 1:
        sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return (denoised - x) / sigma**2
