"""What the files are worth: Frechet distance, precision, recall, coverage, class agreement, variance within classes.

All on the features of the digit detector (`make/detector.py`), with the unbiased covariance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from refine.contracts import Denoiser
from refine.diffusion.sampler import heun_sample
from refine.digits.digits import NUM_CLASSES, Images

Sampler = Callable[[Tensor], Tensor]  # one-hot labels [N, 10] -> images [N, 1, R, R] in [-1, 1]
NEAREST = 5


@dataclass(frozen=True)
class Figures:
    """How a set of generated images compares with a set of real ones.

    Attributes:
        fid: Frechet distance of the features.
        precision, recall: Kynkaanniemi et al., arXiv 1904.06991, k = 5.
        coverage: Naeem et al., arXiv 2002.09797, k = 5.
        agreement: share of images that the detector takes for the class that was asked for.
        variance: of the pixels, summed over the image, within classes; images in [-1, 1].
        class_shares: what share of the images the detector takes for each class.
    """

    fid: float
    precision: float
    recall: float
    coverage: float
    agreement: float
    variance: float
    class_shares: tuple[float, ...]


def figures(images: Tensor, classes: Tensor, reals: Images, detector: torch.nn.Module) -> Figures:
    """Compares images [N, 1, R, R] uint8, made for `classes` [N], with real ones of the same size.

    Precision, recall and coverage depend on how many there are: they take the first images, as many as real ones, in
    which all classes should occur alike (as `sample` has it).
    """
    features, real_features = (detector(x, return_features=True).double() for x in (images, reals.pixels))
    recognised = detector(images).argmax(dim=1)
    some = features[: len(reals)]
    return Figures(
        fid=frechet_distance(*moments(features), *moments(real_features)),
        precision=share_inside(some, real_features),
        recall=share_inside(real_features, some),
        coverage=coverage(real_features, some),
        agreement=float((recognised == classes).float().mean()),
        variance=variance_within(images, classes),
        class_shares=tuple((torch.bincount(recognised, minlength=NUM_CLASSES) / len(images)).tolist()),
    )


def moments(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean [C] and covariance [C, C] of features [N, C]."""
    array: Any = features.double().numpy()
    return array.mean(axis=0), np.cov(array, rowvar=False)


def frechet_distance(mu: np.ndarray, sigma: np.ndarray, real_mu: np.ndarray, real_sigma: np.ndarray) -> float:
    """|mu - mu'|^2 + tr(S + S' - 2 (S S')^1/2) (Heusel et al., arXiv 1706.08500)."""
    root = scipy.linalg.sqrtm(sigma @ real_sigma)
    return float(np.square(mu - real_mu).sum() + np.trace(sigma + real_sigma - 2 * np.real(root)))


def share_inside(points: Tensor, others: Tensor) -> float:
    """Share of points that lie within reach of some other: no farther from it than its k-th neighbour is."""
    return float((torch.cdist(points, others) <= reach(others)[None]).any(dim=1).double().mean())


def coverage(reals: Tensor, fakes: Tensor) -> float:
    """Share of real points that have a generated one within reach."""
    return float((torch.cdist(reals, fakes) <= reach(reals)[:, None]).any(dim=1).double().mean())


def reach(points: Tensor) -> Tensor:
    """Distance of each point [N, C] to its k-th nearest neighbour, [N]."""
    return torch.cdist(points, points).kthvalue(NEAREST + 1, dim=1).values  # the nearest is the point itself


def variance_within(images: Tensor, classes: Tensor) -> float:
    """Mean over classes of the pixels' variance, summed over the image."""
    x0 = images.double() / 127.5 - 1
    of_classes = [x0[classes == number] for number in range(NUM_CLASSES)]
    return float(torch.stack([x.var(dim=0).sum() for x in of_classes if len(x) > 1]).mean())


@torch.no_grad()
def sample(sampler: Sampler, count: int, batch: int = 200) -> tuple[Tensor, Tensor]:
    """Images [count, 1, R, R] uint8 and their classes, which take turns."""
    classes = torch.arange(count) % NUM_CLASSES
    labels = torch.nn.functional.one_hot(classes, NUM_CLASSES).float()
    images = torch.cat([sampler(part) for part in labels.split(batch)])
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8), classes


def generator_sampler(G: Any) -> Sampler:
    """Images of a generator for latents from PyTorch's default generator."""
    return lambda labels: G(torch.randn(len(labels), G.z_dim), labels)


def teacher_sampler(denoiser: Denoiser) -> Sampler:
    """Images of a diffusion model, of its own resolution: 18 steps of Heun's method."""
    size = denoiser.img_resolution
    return lambda labels: heun_sample(denoiser, torch.randn(len(labels), 1, size, size), labels).float()
