"""Images by seed, as StyleGAN's own scripts make them: the same seed is the same latent everywhere.

A one-step generator, whose latents are images of noise, has the seeds of the scripts of EDM and SiD: a random generator
of PyTorch for each seed, which draws the noise and then, for a generator with classes, the class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from refine.errors import UserError

if TYPE_CHECKING:
    from refine.networks.loading import LoadedNetwork

MAX_SEED = 2**32 - 1
MAX_SEEDS = 1_000_000


class SeedInput(NamedTuple):
    """Input of the image of a seed.

    Attributes:
        z: Latent, [1, *z_shape].
        class_index: Class; None for a label of zeros.
    """

    z: Tensor
    class_index: int | None


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parses seeds: `0-3,40` -> 0, 1, 2, 3, 40.

    Raises:
        UserError: The text is not a list of seeds and ranges, or a seed is above 2^32 - 1, NumPy's limit.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,99})\s*(?:-\s*(\d{1,99})\s*)?", part, flags=re.ASCII)
        if not found:
            raise UserError(f"Seeds must be numbers and ranges such as 0-35,40, not {text!r}.")
        first, last = int(found[1]), int(found[2] or found[1])
        if last > MAX_SEED:
            raise UserError(f"Seeds go from 0 to {MAX_SEED}, which {last} is beyond.")
        if last < first:
            raise UserError(f"The range of seeds {part.strip()} must rise: write {last}-{first}.")
        if last - first >= MAX_SEEDS - len(seeds):
            raise UserError(f"{text!r} is more than {MAX_SEEDS:,} seeds: generate them in parts.")
        seeds += range(first, last + 1)
    return tuple(seeds)


def latent(seed: int, z_dim: int) -> Tensor:
    """Latent [1, z_dim] of a seed, float32: NumPy's legacy normal numbers in float64, as in StyleGAN's scripts."""
    return torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim).astype(np.float32))


def z_shape_of(generator: Any) -> tuple[int, ...]:
    """Shape of one latent: `(z_dim,)`, or (C, R, R) for a one-step generator."""
    shape = getattr(generator, "z_shape", None)
    return (int(generator.z_dim),) if shape is None else tuple(shape)


def has_noise_latents(generator: Any) -> bool:
    """True for a one-step generator, whose latents are images of noise."""
    return len(z_shape_of(generator)) > 1


def noise_latent(seed: int, z_shape: Sequence[int], c_dim: int, device: torch.device | str = "cpu") -> SeedInput:
    """Noise [1, C, R, R] of a seed, and the class that the scripts of EDM and SiD draw after it.

    PyTorch's random numbers on a GPU differ from those on the CPU, as in those scripts.

    Args:
        seed: Seed, 0 to 2^32 - 1.
        z_shape: Shape (C, R, R) of the noise.
        c_dim: Number of classes; 0 for none.
        device: Device that draws.
    """
    draw = torch.Generator(device).manual_seed(seed % 2**32)
    z = torch.randn(tuple(z_shape), generator=draw, device=device)[None]
    drawn = torch.randint(c_dim, size=[], generator=draw, device=device) if c_dim else None
    return SeedInput(z, None if drawn is None else int(drawn))


def seed_input(generator: Any, seed: int, class_index: int | None, device: torch.device | str = "cpu") -> SeedInput:
    """Latent [1, *z_shape] of a seed, and the class: the given one, or for a one-step generator the seed's own.

    Args:
        generator: Generator of any family.
        seed: Seed, 0 to 2^32 - 1.
        class_index: Class; None for the seed's own, or none.
        device: Device of the generator.
    """
    if not has_noise_latents(generator):
        return SeedInput(latent(seed, generator.z_dim).to(device), class_index)
    drawn = noise_latent(seed, z_shape_of(generator), int(generator.c_dim), device)
    return drawn if class_index is None else drawn._replace(class_index=class_index)


def label(c_dim: int, class_index: int | None) -> Tensor:
    """One-hot label [1, c_dim] of a class; zeros without a class.

    Raises:
        UserError: The generator does not have the class.
    """
    c = torch.zeros(1, c_dim)
    if class_index is not None:
        if not 0 <= class_index < c_dim:
            raise UserError(f"This generator has classes 0 to {c_dim - 1}, not {class_index}.")
        c[0, class_index] = 1
    return c


def class_of(generator: Any, class_index: int | None) -> int | None:
    """Class to generate; None for a generator without classes, and for a one-step generator that draws its classes.

    Raises:
        UserError: The generator has classes, and none was chosen, or the chosen class does not exist.
    """
    if not generator.c_dim or (class_index is None and has_noise_latents(generator)):
        return None
    if class_index is None:
        count = generator.c_dim
        raise UserError(f"This generator has {count} classes: choose one with --class=0 to {count - 1}.")
    label(generator.c_dim, class_index)
    return class_index


def images_of(
    generator: Any,
    seeds: Sequence[int],
    class_index: int | None = None,
    truncation_psi: float = 1.0,
    noise_mode: str = "const",
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Image [1, C, H, W] of each seed, float32 on the CPU, nominally in [-1, 1].

    Args:
        generator: Generator on `device`.
        seeds: Seeds of the latents; with `noise_mode="random"` also of the noise.
        class_index: Class of all images; None for a label of zeros, and for each seed's own of a one-step generator.
        truncation_psi: Truncation: 1 for the full distribution, 0 for the average image.
        noise_mode: Noise inputs: `const`, `random` or `none`.
        device: Device of the generator.
    """
    for seed in seeds:
        z, number = seed_input(generator, seed, class_index, device)
        c = label(generator.c_dim, number).to(device)
        if noise_mode == "random":
            torch.manual_seed(seed)
        with torch.no_grad():
            image = generator(z, c, truncation_psi=truncation_psi, noise_mode=noise_mode)
        yield image.float().cpu()


def generate(
    generator: LoadedNetwork | torch.nn.Module,
    seeds: Sequence[int],
    *,
    class_index: int | None = None,
    truncation_psi: float = 1.0,
    noise_mode: str = "const",
) -> Tensor:
    """Generates images by seed, equal to those of StyleGAN's own scripts.

    Args:
        generator: Result of `load_generator`, or its network, on any device.
        seeds: Seeds of the latents, 0 to 2^32 - 1; with `noise_mode="random"` also of the noise.
        class_index: Class of all images; needed for a GAN with classes. A one-step generator without it draws a class
            for each seed, as SiD's script does.
        truncation_psi: Truncation: 1 for the full distribution, 0 for the average image.
        noise_mode: Noise inputs: `const`, `random` or `none`.

    Returns:
        Images [N, C, R, R], float32 on the CPU, nominally in [-1, 1], not clamped.

    Raises:
        UserError: The class is missing or unknown, or an image is not finite.
    """
    network: Any = getattr(generator, "network", generator)
    device = next(network.parameters()).device
    class_index = class_of(network, class_index)
    images = torch.cat(list(images_of(network, seeds, class_index, truncation_psi, noise_mode, device)))
    if not images.isfinite().all():
        raise UserError("The generator makes images that are not finite: use an earlier snapshot.")
    return images


def image_of_ws(generator: Any, ws: Tensor, noise_mode: str = "const") -> Tensor:
    """The image [N, C, H, W] of intermediate latents [N, num_ws, w_dim], of a generator of the StyleGAN family."""
    image: Tensor = generator.synthesis(ws, noise_mode=noise_mode)
    return image


def squared_difference(one: Tensor, other: Tensor) -> float:
    """Mean squared difference of two images in [-1, 1], both clamped to this range, in gray levels of 255."""
    return float(((one.clamp(-1, 1) - other.clamp(-1, 1)) * 127.5).double().square().mean())


def labels_in_turn(count: int, c_dim: int, columns: int | None = None) -> Tensor:
    """One-hot labels [count, c_dim] that cycle through the classes; with `columns`, restarting in each row."""
    c = torch.zeros(count, c_dim)
    if c_dim:
        index = torch.arange(count)
        c[index, index % (columns or count) % c_dim] = 1
    return c
