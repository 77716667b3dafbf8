"""Perceptual path length: the speed at which images change along a path of latents (Karras et al., arXiv 1812.04948).

A step of size epsilon is taken at a point of the path, and the squared perceptual distance of both images is divided
by epsilon^2. The mean leaves out the extremes below the 1st and above the 99th percentile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from refine.contracts import Generator
from refine.errors import UserError
from refine.metrics.batch_size import USUAL, BatchSize
from refine.metrics.collect import collect_rows
from refine.metrics.detectors import Detector
from refine.metrics.metric import COUNT, Measured, Metric, Results, count_in
from refine.metrics.sampler import draw_labels, draw_latents, draw_noise, draw_uniform, images_at_once, with_noise

if TYPE_CHECKING:
    from refine.metrics.drawn import DrawnImages

EPSILON = 1e-4
DETECTOR_SIZE = 256  # larger images are reduced to about this
PAIRS_OF_PATHS = 8  # one path for so many images of a batch: path lengths are computed in float32, twice


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Point at t on the great circle from a's direction to b's, of length 1: [N, D] for t [N, 1]."""
    a, b = (v / v.norm(dim=-1, keepdim=True) for v in (a, b))
    cosine = (a * b).sum(dim=-1, keepdim=True)
    toward = b - cosine * a
    toward = toward / toward.norm(dim=-1, keepdim=True)
    angle = t * torch.acos(cosine)
    point = a * torch.cos(angle) + toward * torch.sin(angle)
    return point / point.norm(dim=-1, keepdim=True)


def path_points(mapping: Any, z0: Tensor, z1: Tensor, c: Tensor, t: Tensor, space: str) -> Tensor:
    """Intermediate latents at t and at t + EPSILON: [2 N, num_ws, w_dim], the former first.

    Args:
        mapping: Mapping network, (z, c) -> ws.
        z0: Latents where paths begin [N, z_dim].
        z1: Latents where paths end [N, z_dim].
        c: Labels [N, c_dim].
        t: Position on the path [N], from 0 to 1.
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
    generator: Generator,
    lpips: Callable[[Tensor], Tensor],
    z: tuple[Tensor, Tensor],
    c: Tensor,
    t: Tensor,
    noise: Sequence[Tensor],
    *,
    space: str,
    crop: bool,
) -> Tensor:
    """Squared perceptual distance of a step over EPSILON^2, for each path: [N] float32.

    Args:
        generator: Generator whose module has `mapping` and `synthesis`.
        lpips: Float images from 0 to 255 -> vectors.
        z: Both ends of the paths, [N, z_dim] each.
        c: Labels [N, c_dim].
        t: Position of the step on the path, [N], from 0 to 1.
        noise: For each layer that adds noise, the noise of each path [N, 1, R, R], the same at both ends of a step.
        space: "z" or "w", where paths are interpolated.
        crop: Take the middle of a face.
    """
    network: Any = generator.module
    ws = path_points(network.mapping, *z, c, t, space)
    with with_noise(generator, [torch.cat([layer, layer]) for layer in noise]):
        images = network.synthesis(ws, noise_mode="const", force_fp32=True)
    before, after = lpips(prepare(images, crop)).chunk(2)
    return (before - after).square().sum(dim=1) / EPSILON**2


def trimmed_mean(distances: np.ndarray) -> float:
    """Mean of what lies between the 1st percentile, rounded down, and the 99th, rounded up."""
    distances = np.asarray(distances)
    lowest = np.percentile(distances, 1, method="lower")
    highest = np.percentile(distances, 99, method="higher")
    return float(distances[(distances >= lowest) & (distances <= highest)].astype(np.float64).mean())


@dataclass(frozen=True)
class PPL(Metric):
    """`ppl2_wend`: perceptual path length; `ppl_zfull`, `ppl_wfull`, `ppl_zend`, `ppl_wend`: StyleGAN's first ones.

    Attributes:
        space: "z" or "w", where a path is interpolated.
        sampling: "full" or "end", where on the path steps begin.
        crop: Take the middle of a face.
    """

    space: str = "w"
    sampling: str = "end"
    crop: bool = False

    forms = (rf"ppl2_(?P<path>wend)(?:{COUNT})?", rf"ppl_(?P<path>[zw](?:full|end))(?:{COUNT})?")
    examples = ("ppl2_wend",)
    needs_reference = False
    role = "vgg"
    precision = "float32"

    @classmethod
    def from_match(cls, name: str, found: Mapping[str, str | None]) -> PPL:
        """See `Metric.from_match`."""
        path = found["path"] or ""
        crop = not name.startswith("ppl2")
        return cls(name, count_in(name, found), space=path[0], sampling=path[1:], crop=crop)

    def ranges(self, fid_seeds: int) -> tuple[range, ...]:
        """See `Metric.ranges`; steps along paths are no images that another metric could share."""
        return ()

    def try_out(self, detector: Detector, images: Tensor) -> int | None:
        """See `Metric.try_out`."""
        detector.lpips(images.float())
        return None

    def measure(self, drawn: DrawnImages) -> list[Any]:
        """See `Metric.measure`: the distances [num_gen] of all steps."""
        generator, seed, device, labels = drawn.generator, drawn.options.seed, drawn.device, drawn.labels
        lpips = drawn.detector_of(self).lpips
        if not (hasattr(generator.module, "mapping") and hasattr(generator.module, "synthesis")):
            raise UserError(f"{self.name} needs a generator with mapping and synthesis, and this one has none.")

        def distances(part: range) -> Tensor:
            ends = draw_latents(part, 2 * generator.z_shape[0], seed, "path latents")
            z0, z1 = ends.to(device).chunk(2, dim=1)
            c = draw_labels(part, labels, int(generator.c_dim), seed).to(device)
            t = draw_uniform(part, seed, "path positions").float().to(device)
            t = t if self.sampling == "full" else t * 0
            noise = draw_noise(generator, part, seed, "path noise")
            return path_distances(generator, lpips, (z0, z1), c, t, noise, space=self.space, crop=self.crop)

        pairs = max(images_at_once(int(generator.img_resolution)) // 2, 1)
        batch = BatchSize(min(max((drawn.options.batch or USUAL) // PAIRS_OF_PATHS, 1), pairs))
        numbers, title = range(self.num_gen), f"paths of {self.name}"
        found = collect_rows(lambda part, size: size.parts(part, distances), numbers, batch, title)
        if not np.isfinite(found).all():
            raise UserError("The generator makes images that are not finite: use an earlier snapshot.")
        return [found]

    def conditions(self, truncation_psi: float, noise_mode: str) -> dict[str, Any]:
        """See `Metric.conditions`: paths are drawn without truncation, and their noise is random."""
        return {"truncation_psi": 1.0, "noise_mode": "random"}

    def results(self, label: str, measured: Measured) -> Results:
        """See `Metric.results`."""
        return Results({label: trimmed_mean(measured.generated[0])})
