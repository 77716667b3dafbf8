"""Is the pair worth a night? What the teacher makes of the generator's images, measured before the first step.

A denoiser that knows a kind of image removes noise from it about as well as from its own samples. Where it does not,
the usual causes are tried out: a correction (swapped channels, another range of colours, a crop, a mirror) that brings
the loss to the teacher's own level names the mistake. Differences are judged against their sampling error, with the
same images and the same noise for everything that is compared.

A large loss that nothing mends has two causes that the loss cannot tell apart: another kind of image, or a generator
that is very far away yet. Labels can: a teacher that gains from being told which class the generator meant sees that
class in the image.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from refine.contracts import Denoiser, Generator
from refine.diffusion.denoiser import usable_sigmas
from refine.diffusion.sampler import HeunOptions, heun_sample
from refine.networks.sampling import labels_in_turn
from refine.pair.bridge import Bridge
from refine.pair.mismatches import BAD, CANDIDATES, SUSPICIOUS, Correction
from refine.runtime.random import stream_generator

log = logging.getLogger("refine")

SIGMAS = (0.1, 0.4, 1.5, 6.0)
NUM_IMAGES, NUM_IMAGES_ON_CPU = 64, 16
# From sigma 20 an image is as good as from 80, and 18 steps then give Gaussian data 97 % of its variance or better.
SAMPLER = HeunOptions(num_steps=18, sigma_min=0.01, sigma_max=20)
IMAGES_AT_ONCE = 16

HOPELESS = 3.0  # a loss ratio that, if nothing mends it, is no matter of quality alone, unless labels show that it is
NUM_ERRORS = 3.0  # standard errors that make a difference
NUM_LABELLED = 64  # images that labels are tried on: those of a bad generator gain little
LABEL_SIGMAS = (1.5, 6.0)  # from where on a label says something that the image does not say better
NUM_SHIFTS = 9  # wrong labels that each right one is compared with
FEWEST_CLASSES = 5  # whose gains have a standard error worth the name


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
        recognised: the loss is hopelessly large, but labels show that the generator draws the teacher's classes.
    """

    sigmas: tuple[float, ...]
    generator_loss: tuple[float, ...]
    teacher_loss: tuple[float, ...]
    generator_range: tuple[float, float]
    teacher_range: tuple[float, float]
    findings: tuple[str, ...]
    warnings: tuple[str, ...]
    num_images: int
    recognised: bool = False

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
        if self.recognised:
            return (
                "The generator is very far from the teacher's images, as one that was stopped early is, but it draws "
                "the teacher's classes: the right labels help the denoising. Nothing else stands against this pair."
            )
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
    generator: Generator,
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
    device = next(generator.module.parameters()).device
    count = num_images or (NUM_IMAGES if device.type == "cuda" else NUM_IMAGES_ON_CPU)
    sigmas = _known(SIGMAS, teacher)
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
        recognised = "domain" in findings and _labels_help(generator, teacher, bridge, seed)
        if recognised:
            findings = []
        wrong_classes = (
            labels is not None
            and not (findings or recognised)
            and _classes_differ(losses, samples, bridge.images(drawn), c, bridge)
        )
    ranges = [(float(x.mean()), float(x.std())) for x in (bridge.images(drawn), samples)]
    sentences = [f"Warning: {CANDIDATES[name].sentence}" for name in findings if name in CANDIDATES]
    if "domain" in findings:
        sentences.append(
            "Warning: The teacher hardly knows such images, and no change of colours, channels, crop or direction "
            "helps. If it was trained on another kind of image, take one that was trained on the generator's; if the "
            "generator is just very far from good (look at what it draws), go on."
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
        recognised=recognised,
    )


def _known(sigmas: tuple[float, ...], teacher: Denoiser) -> tuple[float, ...]:
    """The nearest noise levels that the teacher was trained at."""
    levels = torch.tensor(sigmas, dtype=torch.float64).clamp(*usable_sigmas(teacher))
    return tuple(round(float(sigma), 6) for sigma in teacher.round_sigma(levels))


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


def _labels_help(generator: Generator, teacher: Denoiser, bridge: Bridge, seed: int) -> bool:
    """Whether the teacher denoises the generator's images better with their own labels than with other ones.

    Classes, not images, are what varies by chance: an image of another kind may lie nearer to one class than to
    others, and all images of its class with it, but right and wrong labels then win alike.
    """
    num_classes = int(generator.c_dim)
    if bridge.label_dim == 0 or num_classes < FEWEST_CLASSES:
        return False
    drawn, c = _draw(generator, NUM_LABELLED, seed)
    images = bridge.images(drawn)
    sigmas = _known(LABEL_SIGMAS, teacher)
    noise = torch.randn([len(sigmas), *images.shape], generator=stream_generator(seed, "preflight/label noise", 0))

    def log_losses(c: Tensor) -> Tensor:
        return denoising_losses(teacher, images, bridge.labels(c), sigmas, noise).log().mean(0)

    count = min(NUM_SHIFTS, num_classes - 1)
    shifts = [1 + i * (num_classes - 1) // count for i in range(count)]
    gains = torch.stack([log_losses(c.roll(shift, dims=1)) for shift in shifts]).mean(0) - log_losses(c)
    classes = c.argmax(1).cpu()
    of_classes = torch.stack([gains[classes == number].mean() for number in classes.unique()])
    return float(of_classes.mean()) > NUM_ERRORS * float(of_classes.std()) / math.sqrt(len(of_classes))


@torch.no_grad()
def _draw(generator: Generator, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] as drawn and one-hot labels [N, c_dim], the classes in turn."""
    device = next(generator.module.parameters()).device
    z = torch.randn(count, *generator.z_shape, generator=stream_generator(seed, "preflight/z", 0)).to(device)
    c = labels_in_turn(count, generator.c_dim).to(device)
    images = [generator(z[part], c[part], noise_mode="const").images for part in _parts(count)]
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
