"""Is the pair worth a night? What the teacher makes of the generator's images, measured before the first step.

A denoiser that knows a kind of image removes noise from it about as well as from its own samples. Where it does not,
the usual causes are tried out: a correction (swapped channels, another range of colours, a crop, a mirror) that brings
the loss to the teacher's own level names the mistake. Differences are judged against their sampling error, with the
same images and the same noise for everything that is compared.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from refine.bridge import Bridge
from refine.diffusion import Denoiser, HeunOptions, heun_sample, usable_sigmas
from refine.draws import labels_in_turn
from refine.streams import stream_generator

log = logging.getLogger("refine")

SIGMAS = (0.1, 0.4, 1.5, 6.0)
NUM_IMAGES, NUM_IMAGES_ON_CPU = 64, 16
# From sigma 20 an image is as good as from 80, and 18 steps then give Gaussian data 97 % of its variance or better.
SAMPLER = HeunOptions(num_steps=18, sigma_min=0.01, sigma_max=20)
IMAGES_AT_ONCE = 16

SUSPICIOUS = 1.1  # a loss ratio from which a mirror, the channels or the range of colours are tried
BAD = 1.25  # one from which the crop is tried too
HOPELESS = 3.0  # one that, if nothing mends it, means another kind of image
NUM_ERRORS = 3.0  # standard errors that make a difference

Correction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Candidate:
    """A mistake that a pair may have, and what would undo it.

    Attributes:
        sentence: what is wrong and what helps.
        correct: generator's images [N, C, H, W] -> what they would be without the mistake.
        needs: the loss ratio from which it is tried.
        of_range: whether it is about the range of colours, which shows in the pixels' mean and deviation too.
    """

    sentence: str
    correct: Correction
    needs: float = SUSPICIOUS
    of_range: bool = False


def _zoomed(share: float) -> Correction:
    """The central share of each image; above 1, more than the image, reflected at its borders."""

    def correct(x: Tensor) -> Tensor:
        size = x.shape[-1]
        border = round(size * (share - 1) / 2)
        if border > 0:
            return functional.pad(x, [border] * 4, mode="reflect")
        return x[:, :, -border : size + border, -border : size + border]

    return correct


CANDIDATES: dict[str, Candidate] = {
    "range 0..1": Candidate(
        "Its colours seem to lie in 0..1 where the teacher expects -1..1: take a generator trained on images in -1..1, "
        "or check how its training read images.",
        lambda x: x * 2 - 1,
        of_range=True,
    ),
    "range 0..255": Candidate(
        "Its colours seem to lie in 0..255 where the teacher expects -1..1: take a generator trained on images in "
        "-1..1, or check how its training read images.",
        lambda x: x / 127.5 - 1,
        of_range=True,
    ),
    "teacher's range 0..1": Candidate(
        "The teacher seems to expect colours in 0..1 where the generator draws -1..1: take a teacher trained on images "
        "in -1..1.",
        lambda x: (x + 1) / 2,
        of_range=True,
    ),
    "negative": Candidate("Its images seem to be negatives: one of the two was trained on inverted images.", torch.neg),
    "channel order": Candidate(
        "Its red and blue channels seem to be swapped (BGR): one of the two was trained on images read in that order.",
        lambda x: x.flip(1),
    ),
    "horizontal mirror": Candidate(
        "Its images seem to be mirrored left to right: one of the two was trained on mirrored images.",
        lambda x: x.flip(3),
    ),
    "vertical mirror": Candidate(
        "Its images seem to be upside down: one of the two was trained on flipped images.", lambda x: x.flip(2)
    ),
} | {
    f"crop {share:g}": Candidate(
        f"The teacher seems to know only the central {share:.0%} of what the generator draws: "
        "take a teacher whose data set was cropped as the generator's was."
        if share < 1
        else "The teacher seems to know a wider frame than the generator draws: "
        "take a teacher whose data set was cropped as the generator's was.",
        _zoomed(share),
        needs=BAD,
    )
    for share in (0.5, 0.625, 0.75, 0.875, 1.25)
}


@dataclass(frozen=True)
class Preflight:
    """What was measured.

    Attributes:
        sigmas: noise levels.
        generator_loss: the teacher's mean squared error on the generator's images, at each of them.
        teacher_loss: the same on its own samples.
        generator_range, teacher_range: mean and standard deviation of the pixels.
        findings: names in `CANDIDATES`, `classes` or `domain`; empty: nothing stands against the pair.
        warnings: a sentence for each.
        num_images: of either kind.
    """

    sigmas: tuple[float, ...]
    generator_loss: tuple[float, ...]
    teacher_loss: tuple[float, ...]
    generator_range: tuple[float, float]
    teacher_range: tuple[float, float]
    findings: tuple[str, ...]
    warnings: tuple[str, ...]
    num_images: int

    def lines(self) -> list[str]:
        """The report as text."""

        def row(title: str, values: tuple[float, ...], form: str) -> str:
            return f"  {title:<22}" + "".join(f"{value:>11{form}}" for value in values)

        ratios = tuple(a / b for a, b in zip(self.generator_loss, self.teacher_loss, strict=True))
        ranges = [f"mean {mean:.2f} std {std:.2f}" for mean, std in (self.generator_range, self.teacher_range)]
        return [
            f"Preflight: how well the teacher denoises {self.num_images} images of the generator and of its own "
            "(mean squared error)",
            row("sigma", self.sigmas, "g"),
            row("generator's images", self.generator_loss, ".4g"),
            row("teacher's own samples", self.teacher_loss, ".4g"),
            row("ratio", ratios, ".2f"),
            f"  Pixels: generator {ranges[0]}, teacher {ranges[1]}",
            *(self.warnings or (f"  {self._verdict(max(ratios))}",)),
        ]

    def _verdict(self, ratio: float) -> str:
        if ratio < BAD:
            return "Nothing stands against this pair."
        return f"No known mistake of a pair explains the ratio of {ratio:.2g}: the generator may just be that far away."


@torch.no_grad()
def denoising_losses(
    denoiser: Denoiser, images: Tensor, labels: Tensor | None, sigmas: tuple[float, ...], noise: Tensor
) -> Tensor:
    """Mean squared error of the denoised images, by noise level and image: ||D(x0 + sigma n, sigma) - x0||^2 / (CHW).

    Args:
        denoiser: the network D.
        images: x0 [N, C, R, R].
        labels: [N, label_dim] or None.
        sigmas: noise levels > 0.
        noise: n [len(sigmas), N, C, R, R], on any device.

    Returns:
        [len(sigmas), N] float64 on the CPU.
    """
    rows = []
    for sigma, n in zip(sigmas, noise, strict=True):
        parts = []
        for part in _parts(len(images)):
            x0 = images[part]
            levels = torch.full([len(x0)], sigma, device=x0.device)
            denoised = denoiser(x0 + sigma * n[part].to(x0.device), levels, None if labels is None else labels[part])
            parts.append((denoised - x0).cpu().double().square().mean(dim=[1, 2, 3]))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def mismatch(losses: Tensor, own: Tensor) -> float:
    """How far the losses [S, N] are from the teacher's own: root mean square of the logarithm of their ratio.

    A ratio below 1 is as telling as one above: images without contrast are easy to denoise.
    """
    return float((losses.mean(1) / own.mean(1)).log().square().mean().sqrt())


def pixel_distance(images: Tensor, others: Tensor) -> float:
    """How far apart the colours of two sets of images are: in mean, by the others' deviation, and in log deviation."""
    shift = float((images.mean() - others.mean()) / others.std())
    return math.hypot(shift, math.log(max(float(images.std() / others.std()), 1e-9)))


def is_beyond_chance(losses: Tensor, own: Tensor) -> bool:
    """Whether losses [S, N] differ from the teacher's own [S, M] by more than chance, at any noise level."""
    difference = (losses.mean(1) / own.mean(1)).log().abs()
    relative = [x.std(1) / x.mean(1) / math.sqrt(x.shape[1]) for x in (losses, own)]
    return bool((difference > NUM_ERRORS * torch.hypot(*relative)).any())


def is_better(corrected: Tensor, losses: Tensor, own: Tensor) -> bool:
    """Whether a correction brings losses [S, N] to the teacher's own: half of the mismatch goes, and not by chance.

    The same images and noise are behind both, so it is the change per image whose error counts.
    """
    if mismatch(corrected, own) > mismatch(losses, own) / 2:
        return False
    change = corrected.log() - losses.log()
    error = change.std(1) / math.sqrt(change.shape[1])
    return bool((change.mean(1).abs() > NUM_ERRORS * error).any())


def preflight(
    generator: Any,
    teacher: Denoiser,
    bridge: Bridge,
    *,
    seed: int = 0,
    num_images: int | None = None,
) -> Preflight:
    """Measures the pair; takes well under a minute on a GPU.

    Args:
        generator: of the StyleGAN contract, on its device.
        teacher: on the same device.
        bridge: between the two.
        seed: of latents and noise.
        num_images: of the generator and of the teacher; None: by device.
    """
    device = next(generator.parameters()).device
    count = num_images or (NUM_IMAGES if device.type == "cuda" else NUM_IMAGES_ON_CPU)
    low, high = usable_sigmas(teacher)
    levels = torch.tensor([min(max(sigma, low), high) for sigma in SIGMAS], dtype=torch.float64)
    sigmas = tuple(round(float(sigma), 6) for sigma in teacher.round_sigma(levels))
    drawn, c = _draw(generator, count, seed)
    labels = bridge.labels(c)
    shape = [count, drawn.shape[1], bridge.img_resolution, bridge.img_resolution]
    noise = torch.randn([len(sigmas), *shape], generator=stream_generator(seed, "preflight/noise", 0))
    with tqdm(total=3 + len(CANDIDATES), desc="preflight", leave=False, disable=None) as bar:

        def losses(images: Tensor, labels: Tensor | None = labels) -> Tensor:
            measured = denoising_losses(teacher, images, labels, sigmas, noise)
            bar.update()
            return measured

        samples = _sample(teacher, shape, labels, seed, device)
        bar.update()
        own = losses(samples)
        as_drawn = losses(bridge.images(drawn))

        def corrected(correct: Correction, of_range: bool) -> Tensor | None:
            """None where the pixels rule it out: images with less contrast are easier to denoise, right or wrong."""
            images = bridge.images(correct(drawn))
            before, after = (pixel_distance(x, samples) for x in (bridge.images(drawn), images))
            return losses(images) if after < (before / 2 if of_range else before + 0.5) else None

        findings = _find(corrected, as_drawn, own)
        wrong_classes = (
            labels is not None and not findings and _classes_differ(losses, samples, bridge.images(drawn), c, bridge)
        )
    ranges = [(float(x.mean()), float(x.std())) for x in (bridge.images(drawn), samples)]
    sentences = [f"Warning: {CANDIDATES[name].sentence}" for name in findings if name in CANDIDATES]
    if "domain" in findings:
        sentences.append(
            "Warning: The teacher does not know this kind of image, and no change of colours, channels, crop or "
            "direction helps: take a teacher that was trained on the generator's kind of image."
        )
    if wrong_classes:
        findings = [*findings, "classes"]
        sentences.append(
            "Warning: The teacher's classes seem to be in another order than the generator's: its denoising does not "
            "gain from the labels that it is given; say which is which with --class-map."
        )
    return Preflight(
        sigmas=sigmas,
        generator_loss=tuple(as_drawn.mean(1).tolist()),
        teacher_loss=tuple(own.mean(1).tolist()),
        generator_range=ranges[0],
        teacher_range=ranges[1],
        findings=tuple(findings),
        warnings=tuple(sentences),
        num_images=count,
    )


def _find(corrected: Callable[[Correction, bool], Tensor | None], as_drawn: Tensor, own: Tensor) -> list[str]:
    """The mistakes, the most telling first: at most two, the second looked for with the first one corrected."""
    found: list[str] = []
    correct: Correction = lambda x: x  # noqa: E731
    now = as_drawn
    while len(found) < 2 and mismatch(now, own) > math.log(SUSPICIOUS) and is_beyond_chance(now, own):
        tried = {}
        for name, candidate in CANDIDATES.items():
            if name not in found and mismatch(as_drawn, own) > math.log(candidate.needs):
                losses = corrected(_after(correct, candidate.correct), candidate.of_range)
                if losses is not None and is_better(losses, now, own):
                    tried[name] = losses
        if not tried:
            break
        best = min(tried, key=lambda name: mismatch(tried[name], own))
        found.append(best)
        correct, now = _after(correct, CANDIDATES[best].correct), tried[best]
    return found if mismatch(now, own) <= math.log(HOPELESS) else ["domain"]


def _after(first: Correction, second: Correction) -> Correction:
    return lambda x: second(first(x))


def _classes_differ(
    losses: Callable[[Tensor, Tensor | None], Tensor], samples: Tensor, images: Tensor, c: Tensor, bridge: Bridge
) -> bool:
    """Whether right labels help the teacher with its own samples, but the generator's do not with the generator's."""
    if c.shape[1] < 2:
        return False
    right, wrong = bridge.labels(c), bridge.labels(c.roll(1, dims=1))

    def gain(x: Tensor) -> tuple[float, float]:
        """What the labels of c gain over those of the next class: mean and standard error."""
        gains = (losses(x, wrong).log() - losses(x, right).log()).mean(0)
        return float(gains.mean()), float(gains.std()) / math.sqrt(len(gains))

    (own, own_error), (given, given_error) = gain(samples), gain(images)
    error = math.hypot(own_error, given_error)
    return own > NUM_ERRORS * own_error and given < own / 4 and own - given > NUM_ERRORS * error


@torch.no_grad()
def _draw(generator: Any, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] as drawn and one-hot labels [N, c_dim], the classes in turn."""
    device = next(generator.parameters()).device
    z = torch.randn(count, generator.z_dim, generator=stream_generator(seed, "preflight/z", 0)).to(device)
    c = labels_in_turn(count, generator.c_dim).to(device)
    images = [generator.synthesis(generator.mapping(z[part], c[part]), noise_mode="const") for part in _parts(count)]
    return torch.cat(images).float(), c


class _FromCpu:
    """A denoiser called with tensors on the CPU: the sampler computes in float64, which not all devices have."""

    def __init__(self, denoiser: Denoiser, labels: Tensor | None, device: torch.device) -> None:
        self.denoiser, self.labels, self.device = denoiser, labels, device
        self.sigma_min, self.sigma_max, self.round_sigma = denoiser.sigma_min, denoiser.sigma_max, denoiser.round_sigma

    def __call__(self, x: Tensor, sigma: Tensor, *args: Any) -> Tensor:
        return self.denoiser(x.float().to(self.device), sigma.float().to(self.device), self.labels).cpu()


def _sample(teacher: Denoiser, shape: list[int], labels: Tensor | None, seed: int, device: torch.device) -> Tensor:
    latents = torch.randn(shape, generator=stream_generator(seed, "preflight/latents", 0))
    samples = []
    for part in _parts(shape[0]):
        denoiser: Any = _FromCpu(teacher, None if labels is None else labels[part], device)
        samples.append(heun_sample(denoiser, latents[part], None, SAMPLER))
    return torch.cat(samples).float().to(device)


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, IMAGES_AT_ONCE):
        yield slice(start, start + IMAGES_AT_ONCE)
