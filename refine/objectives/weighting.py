"""Weights of a loss over noise levels and images, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def weights(weighting: str, x0: Tensor, teacher: Tensor, sigma: Tensor) -> Tensor:
    """Weight of each image, without gradient.

    Args:
        weighting: A key of `WEIGHTINGS`.
        x0: Generated images, [N, C, R, R].
        teacher: D_T(x_t), [N, C, R, R].
        sigma: Noise levels > 0, [N].

    Returns:
        [N].

    Raises:
        ValueError: The weighting is unknown.
    """
    check_weighting(weighting)
    with torch.no_grad():
        return WEIGHTINGS[weighting](x0, teacher, sigma)


def check_weighting(weighting: str) -> None:
    """Refuses a name that is no key of `WEIGHTINGS`.

    Raises:
        ValueError: The weighting is unknown.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, not {weighting!r}")


def _uniform(x0: Tensor, teacher: Tensor, sigma: Tensor) -> Tensor:
    """Setting of Diff-Instruct's published code: w = 1 in the space of denoised images."""
    return torch.ones_like(sigma)


def _dmd(x0: Tensor, teacher: Tensor, sigma: Tensor) -> Tensor:
    """Normalization per image: w = 1 / mean |x0 - D_T| (DMD, arXiv 2311.18828, eq. 8; SiD, arXiv 2404.04057)."""
    return 1 / (x0 - teacher).abs().mean(dim=[1, 2, 3]).clamp(min=1e-5)


def _score(x0: Tensor, teacher: Tensor, sigma: Tensor) -> Tensor:
    """Difference of the scores themselves: w = 1 / sigma^2."""
    return 1 / sigma**2


def _vsd(x0: Tensor, teacher: Tensor, sigma: Tensor) -> Tensor:
    """Difference of the noise estimates, (D_T - D_F) / sigma: w = 1 / sigma (ProlificDreamer, arXiv 2305.16213)."""
    return 1 / sigma


WEIGHTINGS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "uniform": _uniform,
    "dmd": _dmd,
    "score": _score,
    "vsd": _vsd,
}
