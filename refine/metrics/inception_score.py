"""Inception score: how sure a classifier is of each image, and how unsure of all together (arXiv 1606.03498)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from refine.metrics.metric import NUM_SPLITS


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation over the splits."""

    mean: float
    std: float


def inception_score(probabilities: np.ndarray, num_splits: int = NUM_SPLITS) -> InceptionScore:
    """The exponential of the mean Kullback-Leibler divergence from p(class) to p(class | image), in float64.

    Args:
        probabilities: [N, classes], rows that sum to 1, in the order in which the images were drawn.
        num_splits: consecutive parts that are scored each for itself; at most N.
    """
    from scipy.special import xlogy  # takes a while to import, which only a metric should pay for

    p = np.asarray(probabilities, np.float64)
    ends = [i * len(p) // num_splits for i in range(num_splits + 1)]
    scores = []
    for first, last in itertools.pairwise(ends):
        part = p[first:last]
        divergence = (xlogy(part, part) - xlogy(part, part.mean(axis=0))).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
