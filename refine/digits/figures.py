"""Figures of generated digits: Fréchet distance, precision, recall, coverage, class agreement, variance within classes.

All are computed from features of the digit detector (`make/detector.py`), which are not Inception's: they compare sets
of these digits with each other and with nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.contracts import Denoiser
from refine.diffusion.sampler import heun_sample
from refine.digits.digits import NUM_CLASSES, Images, shipped_detector, shipped_split
from refine.files.images import to_uint8
from refine.metrics.fid import frechet_distance
from refine.metrics.moments import Moments
from refine.metrics.precision_recall import precision_recall
from refine.networks.sampling import z_shape_of

Sampler = Callable[[Tensor], Tensor]  # one-hot labels [N, 10] -> images [N, 1, R, R] in [-1, 1]
NEAREST = 5  # k of precision, recall and coverage


@dataclass(frozen=True)
class Figures:
    """Comparison of generated images with real ones.

    Attributes:
        fid: Fréchet distance of the features, with covariances divided by n - 1.
        precision, recall: Kynkäänniemi et al., arXiv 1904.06991, with k = 5.
        coverage: Naeem et al., arXiv 2002.09797, with k = 5.
        agreement: Share of images that the detector takes for the wanted class.
        variance: Variance of the pixels within classes, summed over the image; images in [-1, 1].
        class_shares: Share of the images that the detector takes for each class.
    """

    fid: float
    precision: float
    recall: float
    coverage: float
    agreement: float
    variance: float
    class_shares: tuple[float, ...]


def figures(images: Tensor, classes: Tensor, reals: Images, detector: torch.nn.Module) -> Figures:
    """Compares generated images with real ones of the same size.

    Precision, recall and coverage depend on the number of images. They take the first generated ones, as many as there
    are real ones, in which all classes should be equally frequent (as `sample` draws them).

    Args:
        images: Generated images [N, 1, R, R] uint8.
        classes: Wanted class of each [N].
        reals: Real images.
        detector: Digit classifier, as `shipped_detector` loads it.
    """
    features, real_features = (detector(x, return_features=True).double() for x in (images, reals.pixels))
    recognized = detector(images).argmax(dim=1)
    some = features[: len(reals)]
    inside = precision_recall(real_features, some, NEAREST, half=False, dtype=torch.float64)
    return Figures(
        fid=frechet_distance(Moments.of(real_features), Moments.of(features), ddof=1).value,
        precision=inside.precision,
        recall=inside.recall,
        coverage=coverage(real_features, some),
        agreement=float((recognized == classes).float().mean()),
        variance=variance_within(images, classes),
        class_shares=tuple((torch.bincount(recognized, minlength=NUM_CLASSES) / len(images)).tolist()),
    )


def figures_of(generator: torch.nn.Module, split: str = "test", count: int = 5000, seed: int = 0) -> Figures:
    """Figures of a generator against built-in images; the global random numbers stay as they are.

    Args:
        generator: Generator of 16x16 digits with ten classes, on the CPU.
        split: Real images, "selection" or "test".
        count: Images to draw, the classes in turn.
        seed: Seed of latents and noise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        images, classes = sample(generator_sampler(generator), count)
    return figures(images, classes, shipped_split(split), shipped_detector())


def moments(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean [C] and covariance [C, C] of features [N, C], divided by N - 1."""
    found = Moments.of(features.double())
    return found.mean, found.covariance(ddof=1)


def coverage(reals: Tensor, fakes: Tensor) -> float:
    """Share of real features [N, C] that have a generated one [M, C] no farther away than their k-th neighbor."""
    return float((torch.cdist(reals, fakes) <= reach(reals)[:, None]).any(dim=1).double().mean())


def reach(points: Tensor) -> Tensor:
    """Distance of each point [N, C] to its k-th nearest neighbor, [N]."""
    return torch.cdist(points, points).kthvalue(NEAREST + 1, dim=1).values  # the nearest is the point itself


def variance_within(images: Tensor, classes: Tensor) -> float:
    """Mean over classes of the pixels' variance, summed over the image; images [N, 1, R, R] uint8, classes [N]."""
    x0 = images.double() / 127.5 - 1
    of_classes = [x0[classes == number] for number in range(NUM_CLASSES)]
    return float(torch.stack([x.var(dim=0).sum() for x in of_classes if len(x) > 1]).mean())


@torch.no_grad()
def sample(sampler: Sampler, count: int, batch: int = 200) -> tuple[Tensor, Tensor]:
    """Images [count, 1, R, R] uint8 and their classes [count], which take turns."""
    classes = torch.arange(count) % NUM_CLASSES
    labels = torch.nn.functional.one_hot(classes, NUM_CLASSES).float()
    images = torch.cat([sampler(part) for part in labels.split(batch)])
    return to_uint8(images), classes


def generator_sampler(G: Any) -> Sampler:
    """Images of a generator, with latents from PyTorch's default random generator."""
    return lambda labels: G(torch.randn(len(labels), *z_shape_of(G)), labels)


def teacher_sampler(denoiser: Denoiser) -> Sampler:
    """Samples of a diffusion model at its own resolution: 18 steps of Heun's method."""
    size = denoiser.img_resolution
    return lambda labels: heun_sample(denoiser, torch.randn(len(labels), 1, size, size), labels).float()
