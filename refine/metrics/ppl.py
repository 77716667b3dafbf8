"""Perceptual path length: how fast images change along a path between latents (Karras et al., arXiv 1812.04948).

A step of size epsilon is taken at a point of the path, and the squared perceptual distance of both images is divided
by epsilon^2. The mean leaves out the extremes below the 1st and above the 99th percentile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.metrics.metric import MetricSpec
from refine.metrics.sampler import with_noise

EPSILON = 1e-4
DETECTOR_SIZE = 256  # larger images are reduced to about this


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The point at t on the great circle from a's direction to b's; [N, D], t [N, 1]; of length 1."""
    a, b = (v / v.norm(dim=-1, keepdim=True) for v in (a, b))
    cosine = (a * b).sum(dim=-1, keepdim=True)
    towards = b - cosine * a
    towards = towards / towards.norm(dim=-1, keepdim=True)
    angle = t * torch.acos(cosine)
    point = a * torch.cos(angle) + towards * torch.sin(angle)
    return point / point.norm(dim=-1, keepdim=True)


def path_points(mapping: Any, z0: Tensor, z1: Tensor, c: Tensor, t: Tensor, space: str) -> Tensor:
    """Intermediate latents at t and at t + EPSILON: [2 N, num_ws, w_dim], the former first.

    Args:
        mapping: (z, c) -> ws.
        z0: where paths begin [N, z_dim].
        z1: where they end.
        c: labels [N, c_dim].
        t: [N], from 0 to 1.
        space: "z": on the sphere of latents; "w": on a straight line between intermediate latents.
    """
    cs = torch.cat([c, c])
    if space == "z":
        t = t[:, None]
        return mapping(torch.cat([slerp(z0, z1, t), slerp(z0, z1, t + EPSILON)]), cs)
    w0, w1 = mapping(torch.cat([z0, z1]), cs).chunk(2)
    t = t[:, None, None]
    return torch.cat([w0.lerp(w1, t), w0.lerp(w1, t + EPSILON)])


def prepare(images: Tensor, crop: bool) -> Tensor:
    """Images [N, C, R, R] in [-1, 1] for the detector: cropped, reduced to 256 pixels, RGB from 0 to 255."""
    if crop:
        unit = images.shape[-1] // 8
        images = images[..., unit * 3 : unit * 7, unit * 2 : unit * 6]
    factor = images.shape[-1] // DETECTOR_SIZE
    if factor > 1:
        images = torch.nn.functional.avg_pool2d(images, factor)
    images = (images + 1) * (255 / 2)
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


@torch.no_grad()
def path_distances(
    generator: Any,
    lpips: Callable[[Tensor], Tensor],
    z: tuple[Tensor, Tensor],
    c: Tensor,
    t: Tensor,
    noise: Sequence[Tensor],
    spec: MetricSpec,
) -> Tensor:
    """Squared perceptual distance of a step over EPSILON^2, for each path: [N] float32.

    Args:
        generator: with `mapping` and `synthesis`.
        lpips: float images from 0 to 255 -> vectors.
        z: both ends of the paths, [N, z_dim] each.
        c: labels [N, c_dim].
        t: where on the path the step is taken, [N].
        noise: for each layer that adds noise, that of each path [N, 1, R, R]: the same at both ends of a step.
        spec: names the space and the crop.
    """
    ws = path_points(generator.mapping, *z, c, t, spec.space)
    with with_noise(generator, [torch.cat([layer, layer]) for layer in noise]):
        images = generator.synthesis(ws, noise_mode="const", force_fp32=True)
    before, after = lpips(prepare(images, spec.crop)).chunk(2)
    return (before - after).square().sum(dim=1) / EPSILON**2


def trimmed_mean(distances: np.ndarray) -> float:
    """The mean of what lies between the 1st percentile, rounded down, and the 99th, rounded up."""
    distances = np.asarray(distances)
    lowest = np.percentile(distances, 1, method="lower")
    highest = np.percentile(distances, 99, method="higher")
    return float(distances[(distances >= lowest) & (distances <= highest)].astype(np.float64).mean())
