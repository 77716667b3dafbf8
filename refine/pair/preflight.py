"""Test of a pair before the first step: the teacher's denoising loss on the generator's images.

A denoiser that knows a kind of image removes noise from it about as well as from its own samples. If its loss on the
generator's images is larger, the usual causes are tried: a correction (channel order, color range, crop, flip) that
brings the loss down to the teacher's own level identifies the mismatch. Differences are judged against their sampling
error, and everything that is compared uses the same images and the same noise.

A large loss that no correction reduces has two possible causes: another kind of image, or a generator that is still
very far from good. The loss cannot tell them apart, but labels can: if the teacher denoises better with the class that
the generator was given, it recognizes that class in the images.
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
from refine.diffusion.guidance import Guided, caution
from refine.diffusion.sampler import HeunOptions, heun_sample
from refine.networks.sampling import labels_in_turn
from refine.pair.bridge import Bridge
from refine.pair.mismatches import BAD, CANDIDATES, SUSPICIOUS, Correction
from refine.runtime.random import stream_generator

log = logging.getLogger("refine")

SIGMAS = (0.1, 0.4, 1.5, 6.0)
NUM_IMAGES, NUM_IMAGES_ON_CPU = 64, 16
# Samples that start at sigma 20 are as good as from 80, and 18 steps then keep at least 97% of a Gaussian's variance.
SAMPLER = HeunOptions(num_steps=18, sigma_min=0.01, sigma_max=20)
IMAGES_AT_ONCE = 16

AT_LEVEL = 1.1  # loss ratio, at all noise levels, up to which the teacher has nothing to object to
HOPELESS = 3.0  # loss ratio that, if no correction reduces it, low quality alone does not explain, unless labels help
NUM_ERRORS = 3.0  # standard errors that make a difference significant
NUM_LABELED = 64  # images of the label test: a bad generator's images gain little each
LABEL_SIGMAS = (1.5, 6.0)  # noise levels at which a label adds to what the image itself shows
NUM_SHIFTS = 9  # wrong labels that each right label is compared with
FEWEST_CLASSES = 5  # fewer classes give no reliable standard error of their gains


@dataclass(frozen=True)
class Preflight:
    """Result of the test.

    Attributes:
        sigmas: Noise levels.
        generator_loss: Mean squared error of the teacher on the generator's images, at each noise level.
        teacher_loss: Mean squared error of the teacher on its own samples, at each noise level.
        generator_range: Mean and standard deviation of the generator's pixels.
        teacher_range: Mean and standard deviation of the pixels of the teacher's samples.
        findings: Problems found: keys of `CANDIDATES`, `classes` or `domain`; and `fid` or `level` if the generator is
            already as good as the teacher, by published values or by the losses. Empty if there are none.
        warnings: Sentence for each finding.
        num_images: Number of generator images, and of teacher samples.
        recognized: Whether the loss is very large, but labels show that the teacher recognizes the generator's classes.
    """

    sigmas: tuple[float, ...]
    generator_loss: tuple[float, ...]
    teacher_loss: tuple[float, ...]
    generator_range: tuple[float, float]
    teacher_range: tuple[float, float]
    findings: tuple[str, ...]
    warnings: tuple[str, ...]
    num_images: int
    recognized: bool = False

    def lines(self) -> list[str]:
        """Report, one line of text each."""

        def row(title: str, values: tuple[float, ...], form: str) -> str:
            return f"  {title:<22}" + "".join(f"{value:>11{form}}" for value in values)

        ratios = tuple(a / b for a, b in zip(self.generator_loss, self.teacher_loss, strict=True))
        ranges = [f"mean {mean:.2f} std {std:.2f}" for mean, std in (self.generator_range, self.teacher_range)]
        return [
            f"Preflight: the teacher's denoising error (MSE) on {self.num_images} images of the generator and "
            f"{self.num_images} samples of its own",
            row("sigma", self.sigmas, "g"),
            row("generator's images", self.generator_loss, ".4g"),
            row("teacher's own samples", self.teacher_loss, ".4g"),
            row("ratio", ratios, ".2f"),
            f"  Pixels: generator {ranges[0]}, teacher {ranges[1]}",
            *(self.warnings or (f"  {self._verdict(max(ratios))}",)),
        ]

    def _verdict(self, ratio: float) -> str:
        if ratio < BAD:
            return "No problems found with this pair."
        if self.recognized:
            return (
                "The generator is very far from the teacher's images, as after training that was stopped early, but "
                "the teacher recognizes its classes: the right labels help the denoising. No other problems found with "
                "this pair."
            )
        return (
            f"No known mismatch explains the loss ratio of {ratio:.2g}: the generator may simply be far from the "
            "teacher's images."
        )


@dataclass(frozen=True)
class KnownFids:
    """Published FIDs of both networks, on the same data.

    Attributes:
        data: Name of the data set.
        generator: FID of the generator.
        teacher: FID of the teacher's samples, at their best.
    """

    data: str
    generator: float
    teacher: float


@torch.no_grad()
def denoising_losses(
    denoiser: Denoiser, images: Tensor, labels: Tensor | None, sigmas: tuple[float, ...], noise: Tensor
) -> Tensor:
    """Mean squared error of the denoised images, by noise level and image: ||D(x0 + sigma n, sigma) - x0||^2 / (CHW).

    Args:
        denoiser: Network D.
        images: Clean images x0, [N, C, R, R].
        labels: Class labels, [N, label_dim]; None for none.
        sigmas: Noise levels > 0.
        noise: Standard normal noise n, [len(sigmas), N, C, R, R], on any device.

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
    """Distance of losses [S, N] from the teacher's own [S, M]: root mean square of ln of the ratio of their means.

    A ratio below 1 counts as much as a ratio above: images of low contrast are easy to denoise.
    """
    return float((losses.mean(1) / own.mean(1)).log().square().mean().sqrt())


def pixel_distance(images: Tensor, others: Tensor) -> float:
    """Distance of the colors of two sets of images: in mean (relative to the others' deviation) and log deviation."""
    shift = float((images.mean() - others.mean()) / others.std())
    return math.hypot(shift, math.log(max(float(images.std() / others.std()), 1e-9)))


def is_beyond_chance(losses: Tensor, own: Tensor) -> bool:
    """True if losses [S, N] differ significantly from the teacher's own [S, M] at any noise level."""
    difference = (losses.mean(1) / own.mean(1)).log().abs()
    relative = [x.std(1) / x.mean(1) / math.sqrt(x.shape[1]) for x in (losses, own)]
    return bool((difference > NUM_ERRORS * torch.hypot(*relative)).any())


def is_better(corrected: Tensor, losses: Tensor, own: Tensor) -> bool:
    """True if a correction at least halves the mismatch of losses [S, N], significantly.

    Both losses come from the same images and noise, so the error that matters is that of the change per image.
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
    known_fids: KnownFids | None = None,
) -> Preflight:
    """Tests a pair; takes well under a minute on a GPU.

    Args:
        generator: Generator, on any device.
        teacher: Teacher, on the same device.
        bridge: Bridge from the generator to the teacher.
        seed: Seed of latents and noise.
        num_images: Number of generator images, and of teacher samples; None for a default by device.
        known_fids: Published FIDs of both networks; None if they are not known.
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
            """None if the pixels rule the correction out: lower contrast makes any image easier to denoise."""
            images = bridge.images(correct(drawn))
            before, after = (pixel_distance(x, samples) for x in (bridge.images(drawn), images))
            return losses(images) if after < (before / 2 if of_range else before + 0.5) else None

        findings = _find(corrected, as_drawn, own)
        recognized = "domain" in findings and _labels_help(generator, teacher, bridge, seed)
        if recognized:
            findings = []
        wrong_classes = (
            labels is not None
            and not (findings or recognized)
            and _classes_differ(losses, samples, bridge.images(drawn), c, bridge)
        )
    ranges = [(float(x.mean()), float(x.std())) for x in (bridge.images(drawn), samples)]
    sentences = [f"Warning: {CANDIDATES[name].sentence}" for name in findings if name in CANDIDATES]
    if "domain" in findings:
        sentences.append(
            "Warning: The teacher fits these images poorly, and no tested correction (color range, channel order, "
            "crop, flip) helps. If the teacher was trained on another kind of image, use a teacher for the generator's "
            "kind; if the generator's images are simply still very bad (look at them), continue."
        )
    if wrong_classes:
        findings = [*findings, "classes"]
        sentences.append(
            "Warning: The teacher's classes seem to be in another order than the generator's: the labels do not help "
            "the teacher denoise. Map the classes with --class-map."
        )
    has_problems = bool(findings)  # which have to be solved before anything is known about quality
    for name, sentence in _reasons_not_to(as_drawn, own, known_fids).items():
        if name == "fid" or not has_problems:
            findings = [*findings, name]
            sentences.append(sentence)
    if isinstance(teacher, Guided):
        guided = caution(teacher, samples, noise[0].to(device), labels)
        sentences += [] if guided is None else [guided]
    return Preflight(
        sigmas=sigmas,
        generator_loss=tuple(as_drawn.mean(1).tolist()),
        teacher_loss=tuple(own.mean(1).tolist()),
        generator_range=ranges[0],
        teacher_range=ranges[1],
        findings=tuple(findings),
        warnings=tuple(sentences),
        num_images=count,
        recognized=recognized,
    )


def _reasons_not_to(as_drawn: Tensor, own: Tensor, known_fids: KnownFids | None) -> dict[str, str]:
    """Sentences on why a refinement may gain nothing, by finding."""
    reasons = {}
    if known_fids is not None and known_fids.generator < known_fids.teacher:
        reasons["fid"] = (
            f"Warning: The generator's published FID on {known_fids.data}, {known_fids.generator:g}, is below the "
            f"teacher's, {known_fids.teacher:g}. Refinement moves the generator toward the teacher, so its FID is more "
            "likely to rise than to fall. Use a better teacher, or leave the generator as it is."
        )
    ratios = as_drawn.mean(1) / own.mean(1)
    if float(ratios.log().abs().max()) <= math.log(AT_LEVEL):
        low, high = float(ratios.min()), float(ratios.max())
        reasons["level"] = (
            f"Warning: The teacher denoises the generator's images as well as its own samples: loss ratios from "
            f"{low:.2f} to {high:.2f}, over {as_drawn.shape[1]} images. A refinement with this teacher may gain "
            "nothing. Compare the FID of the generator with that of the teacher first; images of a kind that is "
            "missing altogether do not show in this loss."
        )
    return reasons


def _known(sigmas: tuple[float, ...], teacher: Denoiser) -> tuple[float, ...]:
    """Nearest noise levels that the teacher supports."""
    levels = torch.tensor(sigmas, dtype=torch.float64).clamp(*usable_sigmas(teacher))
    return tuple(round(float(sigma), 6) for sigma in teacher.round_sigma(levels))


def _find(corrected: Callable[[Correction, bool], Tensor | None], as_drawn: Tensor, own: Tensor) -> list[str]:
    """Mismatches, the largest first: at most two, the second searched for with the first corrected."""
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
    """True if labels help the teacher denoise its own samples, but not the generator's images."""
    if c.shape[1] < 2:
        return False
    right, wrong = bridge.labels(c), bridge.labels(c.roll(1, dims=1))

    def gain(x: Tensor) -> tuple[float, float]:
        """Gain of the right labels over those of the next class: mean and standard error."""
        gains = (losses(x, wrong).log() - losses(x, right).log()).mean(0)
        return float(gains.mean()), float(gains.std()) / math.sqrt(len(gains))

    (own, own_error), (given, given_error) = gain(samples), gain(images)
    error = math.hypot(own_error, given_error)
    return own > NUM_ERRORS * own_error and given < own / 4 and own - given > NUM_ERRORS * error


def _labels_help(generator: Generator, teacher: Denoiser, bridge: Bridge, seed: int) -> bool:
    """True if the teacher denoises the generator's images better with their own labels than with other labels.

    The standard error is taken over classes, not images: an image of another kind, and with it all images of its
    class, may lie nearer to one class of the teacher than to others, but then right and wrong labels win equally often.
    """
    num_classes = int(generator.c_dim)
    if bridge.label_dim == 0 or num_classes < FEWEST_CLASSES:
        return False
    drawn, c = _draw(generator, NUM_LABELED, seed)
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
    """Images [N, C, H, W] as generated, and one-hot labels [N, c_dim] that cycle through the classes."""
    device = next(generator.module.parameters()).device
    z = torch.randn(count, *generator.z_shape, generator=stream_generator(seed, "preflight/z", 0)).to(device)
    c = labels_in_turn(count, generator.c_dim).to(device)
    images = [generator(z[part], c[part], noise_mode="const").images for part in _parts(count)]
    return torch.cat(images).float(), c


class _FromCpu:
    """Denoiser for tensors on the CPU: the sampler computes in float64, which not all devices support."""

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
