"""Kernel Inception distance: the maximum mean discrepancy under a cubic kernel (Bińkowski et al., arXiv 1801.01401)."""

from __future__ import annotations

import numpy as np

from refine.metrics.metric import MAX_SUBSET_SIZE, NUM_SUBSETS


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x . y / D + 1)^3 for features [N, D] and [M, D]: [N, M]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of the squared discrepancy of two sets of the same size m >= 2 (theirs, eq. 4).

    Pairs of an element with itself are left out within a set, and kept between the sets.
    """
    m = len(x)
    within = sum(k.sum() - np.trace(k) for k in (polynomial_kernel(x, x), polynomial_kernel(y, y)))
    return float(within / (m * (m - 1)) - 2 * polynomial_kernel(x, y).mean())


def kid(
    real: np.ndarray,
    generated: np.ndarray,
    num_subsets: int = NUM_SUBSETS,
    max_subset_size: int = MAX_SUBSET_SIZE,
    seed: int = 0,
) -> float:
    """The mean of the squared discrepancy over random subsets, in float64.

    Args:
        real: features [N, D].
        generated: features [M, D].
        num_subsets: subsets drawn of both.
        max_subset_size: elements of a subset; all of the smaller set if that has fewer.
        seed: of NumPy's legacy generator, which draws the subsets; of the generated set first.
    """
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    size = min(len(real), len(generated), max_subset_size)
    draw = np.random.RandomState(seed)
    total = 0.0
    for _ in range(num_subsets):
        x = generated[draw.choice(len(generated), size, replace=False)]
        y = real[draw.choice(len(real), size, replace=False)]
        total += squared_mmd(x, y)
    return total / num_subsets
