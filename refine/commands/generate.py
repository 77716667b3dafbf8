"""`python -m refine generate --network=PKL --seeds=0-35 --outdir=DIR`: images as StyleGAN's script makes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refine.commands.arrays import read_rows
from refine.commands.base import Command
from refine.commands.locate import network_file
from refine.commands.options import (
    NETWORK,
    Finite,
    Folder,
    OutFile,
    Point,
    Spec,
    Whole,
    check_output,
    device_option,
    force_option,
    gan_option,
    network_option,
    sigma_init_option,
    trust_option,
)
from refine.config import NOISE_MODES
from refine.errors import UserError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MAX_GRID_SIDE = 8192  # pixels of a comparison, beyond which its images are reduced
MAX_IMAGES = 1_000_000
GAP = 16  # pixels between its two halves
_FILE = click.Path(path_type=Path)


@click.command(cls=Command)
@network_option
@click.option("--seeds", metavar="0-35,40", help="Seeds, one image for each.")
@gan_option
@click.option("--latents", type=_FILE, metavar="NPZ|NPY", help="Latents z [N, z_dim] in place of seeds.")
@sigma_init_option
@click.option("--projected-w", type=_FILE, metavar="NPZ|NPY", help="Projected w [N, num_ws, w_dim] in place of seeds.")
@click.option(
    "--trunc", "truncation_psi", type=Finite(), metavar="PSI", default=1.0, show_default=True, help="Truncation psi."
)
@click.option(
    "--class", "classes", metavar="K|0-9|all", help="Class of a conditional generator; several: an image of each."
)
@click.option(
    "--label", metavar="X,X,..|NPY", help="Label in place of a class: a number for each class, or [N, c_dim] in a file."
)
@click.option(
    "--noise-mode",
    type=click.Choice(NOISE_MODES),
    default="const",
    show_default=True,
    help="The generator's noise inputs.",
)
@click.option(
    "--noise-seed", type=Whole(0, 2**63 - 1), metavar="N",
    help="For --noise-mode=random: one seed for all images. Default: each image's own.",
)  # fmt: skip
@click.option(
    "--translate", type=Point(), metavar="X,Y", help="Shift of the image in image widths, to the right and down."
)
@click.option("--rotate", type=Finite(), metavar="DEGREES", help="Rotation of the image, counterclockwise.")
@click.option("--outdir", type=Folder(), metavar="DIR", help="Folder for the images.")
@click.option(
    "--compare", type=Spec(), metavar=NETWORK, help="Another generator to show next to this one, in compare.png."
)
@click.option(
    "--video", type=OutFile(".mp4"), metavar="MP4",
    help="Video from each image to the next; with --compare, from that generator to --network and back.",
)  # fmt: skip
@click.option(
    "--frames", type=Whole(1, 100_000), metavar="N", default=60, show_default=True,
    help="Frames of the video from one image to the next.",
)  # fmt: skip
@click.option("--fps", type=Whole(1, 240), metavar="N", default=30, show_default=True, help="Frames per second.")
@force_option
@device_option
@trust_option
def main(
    network: str,
    seeds: str | None,
    gan: str | None,
    latents: Path | None,
    sigma_init: float | None,
    projected_w: Path | None,
    truncation_psi: float,
    classes: str | None,
    label: str | None,
    noise_mode: str,
    noise_seed: int | None,
    translate: tuple[float, float] | None,
    rotate: float | None,
    outdir: Path | None,
    compare: str | None,
    video: Path | None,
    frames: int,
    fps: int,
    force: bool,
    device: str,
    trust_pickle: bool,
) -> None:
    """Write a PNG for each seed, named seed0000.png and so on: the same seed is the same image as in StyleGAN."""
    if sum(source is not None for source in (seeds, latents, projected_w)) != 1:
        raise click.UsageError("Give one of --seeds, such as --seeds=0-35, --latents and --projected-w.")
    if projected_w is not None and (compare is not None or classes is not None or label is not None):
        given = "--compare" if compare is not None else "--class" if classes is not None else "--label"
        raise click.UsageError(f"{given} needs --seeds or --latents: a projected w belongs to one generator and class.")
    if classes is not None and label is not None:
        raise click.UsageError("--class and --label are two labels: give one of them.")
    if noise_seed is not None and noise_mode != "random":
        raise click.UsageError(f"--noise-seed has no effect on --noise-mode={noise_mode}: add --noise-mode=random.")
    if outdir is None and video is None:
        raise click.UsageError("Give --outdir, the folder for the images, or --video.")
    if video is not None:
        from refine.commands.video import require_ffmpeg

        require_ffmpeg()
        check_output(video, force)

    from refine.networks.loading import LoadedNetwork  # torch takes seconds to import
    from refine.networks.own_snapshot import open_generator
    from refine.networks.sampling import has_noise_latents, parse_seeds
    from refine.runtime.device import choose_device

    numbers = parse_seeds(seeds) if seeds is not None else None
    where = choose_device(device)
    specs = [network_file(spec) for spec in (network, compare) if spec is not None]
    loaded = [open_generator(spec, gan=gan, trust=trust_pickle, sigma_init=sigma_init) for spec in specs]
    generators: list[Any] = [each.network.to(where) for each in loaded]
    _require_same_shape(generators)
    draws_classes = numbers is not None and classes is None and label is None and has_noise_latents(generators[0])
    c = _labels(generators[0], classes, label, needs_one=projected_w is None and not draws_classes)
    inputs = (
        _from_ws(generators[0], projected_w)
        if projected_w is not None
        else _from_seeds(generators[0], numbers, c, draws_classes, where)
        if numbers is not None
        else _from_latents(generators[0], latents, c)
    )
    settings = Settings(truncation_psi, noise_mode, noise_seed, where, _transform(generators, translate, rotate))
    pictures = None
    if video is not None:
        from refine.commands import video as film

        ends = [each for each in reversed(loaded) if isinstance(each, LoadedNetwork)]
        if compare is not None and len(ends) < 2:
            raise UserError(
                "--video from --compare to --network needs two pickles: leave out one of --video, --compare."
            )
        pictures = (
            film.between_inputs(generators[0], inputs, frames, settings)
            if compare is None
            else film.between_generators(ends[0], ends[1], inputs, frames, settings)
        )
    if outdir is not None:
        targets = [outdir / f"{each.name}.png" for each in inputs]
        for path in [*targets, *([outdir / "compare.png"] if compare is not None else [])]:
            if path.exists() and not force:
                raise UserError(f"{path} exists: choose another --outdir, or add --force to overwrite images.")
        _write_images(generators, inputs, outdir, settings)
        click.echo(f"Wrote {len(inputs)} image{'s' if len(inputs) != 1 else ''} to {outdir}")
    if video is not None and pictures is not None:
        count = film.write_video(video, pictures, fps)
        click.echo(f"Wrote {count} frames, {count / fps:.1f} s, to {video}")


@dataclass(frozen=True)
class Input:
    """Input of one image.

    Attributes:
        name: Name of the image's file, without `.png`.
        seed: Seed of the noise.
        z: Latent [1, z_dim]; None: `ws` is given.
        c: Label [1, c_dim].
        ws: Intermediate latents [1, num_ws, w_dim]; None: `z` is given.
    """

    name: str
    seed: int
    z: Tensor | None = None
    c: Tensor | None = None
    ws: Tensor | None = None


@dataclass(frozen=True)
class Settings:
    """Settings that all images share.

    Attributes:
        truncation_psi: 1 for the full distribution, 0 for the average image.
        noise_mode: `const`, `random` or `none`.
        noise_seed: Seed of the noise of all images; None: each image's own.
        device: Device of the generators.
        transform: Matrix [3, 3] that takes points of the image to points of the features that a StyleGAN3 generator
            starts from; None: as the generator has it.
    """

    truncation_psi: float
    noise_mode: str
    noise_seed: int | None
    device: Any
    transform: Tensor | None = None


def draw(generator: Any, each: Input, settings: Settings) -> Tensor:
    """The image [1, C, H, W] in float32 on the CPU, nominally in [-1, 1].

    Raises:
        UserError: The image is not finite.
    """
    import torch

    from refine.networks.sampling import image_of_ws

    if settings.transform is not None:
        generator.synthesis.input.transform.copy_(settings.transform)
    if settings.noise_mode == "random":
        torch.manual_seed(each.seed if settings.noise_seed is None else settings.noise_seed)
    with torch.no_grad():
        if each.ws is not None:
            image = image_of_ws(generator, each.ws.to(settings.device), settings.noise_mode)
        else:
            assert each.z is not None and each.c is not None
            image = generator(
                each.z.to(settings.device),
                each.c.to(settings.device),
                truncation_psi=settings.truncation_psi,
                noise_mode=settings.noise_mode,
            )
    image = image.float().cpu()
    if not image.isfinite().all():
        raise UserError(
            f"The image {each.name} is not finite: use an earlier snapshot, or a --trunc closer to 1 than "
            f"{settings.truncation_psi:g}."
        )
    return image


def _transform(generators: Sequence[Any], translate: tuple[float, float] | None, rotate: float | None) -> Any:
    """The matrix of a shift and a rotation, as StyleGAN3's script makes it; None if neither is wanted.

    Raises:
        UserError: A generator is not StyleGAN3, whose features alone can be moved.
    """
    if translate is None and rotate is None:
        return None
    import torch

    option = "--rotate" if translate is None else "--translate"
    for generator in generators:
        if not hasattr(getattr(getattr(generator, "synthesis", None), "input", None), "transform"):
            raise UserError(f"{option} needs a StyleGAN3 generator, whose features can be moved: leave it out.")
    (x, y), angle = translate or (0.0, 0.0), math.radians(rotate or 0.0)
    cos, sin = math.cos(angle), math.sin(angle)
    forward = torch.tensor([[cos, sin, x], [-sin, cos, y], [0, 0, 1]], dtype=torch.float64)
    return torch.linalg.inv(forward).float()


def _require_same_shape(generators: Sequence[Any]) -> None:
    from refine.networks.sampling import z_shape_of

    def shape(generator: Any) -> dict[str, Any]:
        names = ("c_dim", "img_resolution", "img_channels")
        z = z_shape_of(generator)
        return {"z_dim": z[0] if len(z) == 1 else list(z), **{name: getattr(generator, name) for name in names}}

    first = shape(generators[0])
    for other in generators[1:]:
        for name, value in shape(other).items():
            if value != first[name]:
                raise UserError(
                    f"--compare has {name} {value} and --network {first[name]}: "
                    "compare a generator with the one that it was refined from."
                )


def _labels(generator: Any, classes: str | None, label: str | None, *, needs_one: bool) -> list[tuple[str, Tensor]]:
    """The labels to draw, each with what it adds to the name of a file.

    Raises:
        UserError: The generator has classes and none was chosen, or not the chosen ones.
    """
    import torch

    from refine.networks import sampling

    count = int(generator.c_dim)
    if not count:
        if classes is not None or label is not None:
            option = f"--class={classes}" if classes is not None else f"--label={label}"
            click.echo(f"{option} is ignored: this generator has no classes.", err=True)
        return [("", torch.zeros(1, 0))]
    if label is not None:
        rows = read_rows(label, count, "--label", "l", "label", "labels")
        return [(f"-label{i}" if len(rows) > 1 else "", torch.from_numpy(row)[None]) for i, row in enumerate(rows)]
    if classes is None:
        if needs_one:
            sampling.class_of(generator, None)  # says which there are
        return [("", torch.zeros(1, count))]
    if classes.strip().lower() == "all":
        chosen: Sequence[int] = range(count)
    else:
        try:
            chosen = sampling.parse_seeds(classes)
        except UserError:
            raise UserError(
                f"--class must be a class from 0 to {count - 1}, several, or all, not {classes!r}."
            ) from None
    return [(f"-class{k}" if len(chosen) > 1 else "", sampling.label(count, k)) for k in dict.fromkeys(chosen)]


def _from_seeds(
    generator: Any, seeds: Sequence[int], labels: list[tuple[str, Tensor]], draws_classes: bool, device: Any
) -> list[Input]:
    """Inputs of seeds; a one-step generator without a given class takes each seed's own, as SiD's script does."""
    from refine.networks.sampling import label, seed_input

    seeds = list(dict.fromkeys(seeds))
    if len(seeds) * len(labels) > MAX_IMAGES:
        raise UserError(f"{len(seeds)} seeds and {len(labels)} labels are more than {MAX_IMAGES:,} images: take fewer.")
    found = []
    for seed in seeds:
        z, number = seed_input(generator, seed, None, device)
        own = [("", label(int(generator.c_dim), number))] if draws_classes else labels
        found += [Input(f"seed{seed:04d}{suffix}", seed, z.cpu(), c) for suffix, c in own]
    return found


def _from_latents(generator: Any, file: Path | None, labels: list[tuple[str, Tensor]]) -> list[Input]:
    import torch

    from refine.networks.sampling import z_shape_of

    rows = read_rows(str(file), z_shape_of(generator), "--latents", "z", "latents")
    return [
        Input(f"latent{index:04d}{suffix}", index, torch.from_numpy(row)[None], c)
        for index, row in enumerate(rows)
        for suffix, c in labels
    ]


def _from_ws(generator: Any, file: Path) -> list[Input]:
    import torch

    if not hasattr(generator, "synthesis"):
        raise UserError("--projected-w needs a StyleGAN generator, and this one has no w: give --seeds or --latents.")
    rows = read_rows(str(file), (int(generator.num_ws), int(generator.w_dim)), "--projected-w", "w")
    return [Input(f"proj{index:02d}", index, ws=torch.from_numpy(row)[None]) for index, row in enumerate(rows)]


def _write_images(generators: list[Any], inputs: list[Input], outdir: Path, settings: Settings) -> None:
    """Writes the images, and with a second generator the comparison."""
    from tqdm import tqdm

    from refine.files.atomic import cannot_write
    from refine.files.images import to_picture
    from refine.networks.sampling import squared_difference

    halves: list[list[Image.Image]] = [[] for _ in generators]
    shrink = _shrink(len(inputs), int(generators[0].img_resolution))
    total = 0.0
    for each in tqdm(inputs, desc="generate", unit="image", disable=None):
        images = [draw(generator, each, settings) for generator in generators]
        pictures = [to_picture(image) for image in images]
        try:
            outdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(outdir, error) from error
        _save(pictures[0], outdir / f"{each.name}.png")
        if len(images) == 2:
            total += squared_difference(images[0], images[1])
            for half, picture in zip(halves, pictures, strict=True):
                half.append(picture.reduce(shrink))
    if len(generators) == 2:
        _save(_side_by_side(halves[1], halves[0]), outdir / "compare.png")
        click.echo(
            f"{outdir / 'compare.png'}: left --compare, right --network, at the same latents; root mean square "
            f"difference {math.sqrt(total / len(inputs)):.2f} of 255 gray levels"
        )


def columns_of(count: int) -> int:
    """Columns of a grid that is about square."""
    return math.ceil(math.sqrt(count))


def _shrink(count: int, resolution: int) -> int:
    """The factor by which the images of a comparison are reduced, so that it can still be looked at."""
    return max(1, math.ceil(2 * columns_of(count) * resolution / MAX_GRID_SIDE))


def _side_by_side(left: list[Image.Image], right: list[Image.Image]) -> Image.Image:
    """Two grids of as many pictures, the same picture at the same place in both."""
    import numpy as np

    from refine.files.images import WHITE, join, picture_of, pixels_of, tile

    columns = columns_of(len(left))
    halves = [np.stack([pixels_of(picture).transpose(2, 0, 1) for picture in half]) for half in (left, right)]
    return picture_of(join([tile(half, columns, fill=WHITE) for half in halves], GAP, axis=1))


def _save(picture: Image.Image, path: Path) -> None:
    from refine.files.atomic import atomic_write

    with atomic_write(path) as file:
        picture.save(file, "PNG")
