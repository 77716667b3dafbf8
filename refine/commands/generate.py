"""`python -m refine generate --network=PKL --seeds=0-35 --outdir=DIR`: images as StyleGAN's script makes them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refine.commands.base import Command
from refine.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

MAX_GRID_SIDE = 8192  # pixels of a comparison, beyond which its images are reduced
GAP = 16  # pixels between its two halves


@click.command(cls=Command)
@click.option("--network", required=True, metavar="PKL|URL|NAME", help="StyleGAN pickle.")
@click.option("--seeds", metavar="0-35,40", help="Seeds, one image each.")
@click.option("--trunc", "truncation_psi", type=float, default=1.0, show_default=True, help="Truncation psi.")
@click.option("--class", "class_index", type=int, help="Class of a conditional generator.")
@click.option(
    "--noise-mode", type=click.Choice(["const", "random", "none"]), default="const", show_default=True, help="Noise."
)
@click.option("--projected-w", type=click.Path(path_type=Path), metavar="FILE", help="Images of the ws in an .npz.")
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where they go.")
@click.option("--compare", metavar="PKL|URL|NAME", help="Another generator: both side by side in compare.png.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--trust-pickle", is_flag=True, help="Run embedded source where Refine has no network of its own.")
def main(
    network: str,
    seeds: str | None,
    truncation_psi: float,
    class_index: int | None,
    noise_mode: str,
    projected_w: Path | None,
    outdir: Path,
    compare: str | None,
    device: str,
    trust_pickle: bool,
) -> None:
    """Write one PNG for each seed, named seed0000.png and so on: the same seed is the same image as in StyleGAN."""
    if (seeds is None) == (projected_w is None):
        raise click.UsageError("Give either --seeds, such as --seeds=0-35, or --projected-w.")
    if projected_w is not None and compare is not None:
        raise click.UsageError("--compare needs --seeds: a projected w belongs to one generator.")

    from refine.files.atomic import cannot_write
    from refine.networks import loading  # torch takes seconds to import
    from refine.networks.sampling import parse_seeds
    from refine.runtime.device import choose_device

    numbers = parse_seeds(seeds) if seeds is not None else ()
    where = choose_device(device)
    generators = [
        loading.load_gan(spec, trust=trust_pickle).network.to(where) for spec in (network, compare) if spec is not None
    ]
    options = {"truncation_psi": truncation_psi, "noise_mode": noise_mode, "device": where}
    try:
        outdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(outdir, error) from error
    if projected_w is not None:
        count = _write_projected(generators[0], projected_w, outdir, noise_mode, where)
    else:
        _write_seeds(generators, numbers, class_index, outdir, options)
        count = len(numbers)
    click.echo(f"Wrote {count} image{'s' if count != 1 else ''} to {outdir}")


def _write_seeds(
    generators: list[Any], seeds: tuple[int, ...], class_index: int | None, outdir: Path, options: dict[str, Any]
) -> None:
    from tqdm import tqdm

    from refine.networks.sampling import class_of, images_of, squared_difference, to_picture

    if class_index is not None and not generators[0].c_dim:
        click.echo(f"--class={class_index} is ignored: this generator has no classes.", err=True)
    class_index = class_of(generators[0], class_index)
    for other in generators[1:]:
        for name in ("z_dim", "c_dim", "img_resolution", "img_channels"):
            if getattr(other, name) != getattr(generators[0], name):
                raise UserError(
                    f"--compare has {name} {getattr(other, name)} and --network {getattr(generators[0], name)}: "
                    "compare a generator with the one that it was refined from."
                )
    streams = [images_of(generator, seeds, class_index, **options) for generator in generators]
    halves: list[list[Image.Image]] = [[] for _ in generators]
    shrink = _shrink(len(seeds), int(generators[0].img_resolution))
    total = 0.0
    for seed, *images in tqdm(
        zip(seeds, *streams, strict=True), desc="generate", total=len(seeds), unit="image", disable=None
    ):
        pictures = [to_picture(image) for image in images]
        _save(pictures[0], outdir / f"seed{seed:04d}.png")
        if len(images) == 2:
            total += squared_difference(images[0], images[1])
            for half, picture in zip(halves, pictures, strict=True):
                half.append(picture.reduce(shrink))
    if len(generators) == 2:
        _save(_side_by_side(halves[1], halves[0]), outdir / "compare.png")
        click.echo(
            f"{outdir / 'compare.png'}: left --compare, right --network, at the same latents; root mean square "
            f"difference {math.sqrt(total / len(seeds)):.2f} of 255 grey levels"
        )


def _write_projected(generator: Any, file: Path, outdir: Path, noise_mode: str, device: Any) -> int:
    import torch

    from refine.networks.sampling import to_picture

    for index, w in enumerate(_read_ws(file, generator.num_ws, generator.w_dim)):
        with torch.no_grad():
            image = generator.synthesis(torch.from_numpy(w)[None].to(device), noise_mode=noise_mode)
        _save(to_picture(image.float().cpu()), outdir / f"proj{index:02d}.png")
    return index + 1


def _read_ws(file: Path, num_ws: int, w_dim: int) -> Any:
    """The array `w` [N, num_ws, w_dim] of an .npz in float32; nothing in it is executed."""
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as arrays:
            ws = arrays["w"].astype(np.float32)
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError) as error:
        raise UserError(f"{file} is no .npz with an array w, as StyleGAN's projector writes it ({error}).") from error
    if ws.ndim != 3 or ws.shape[1:] != (num_ws, w_dim) or not len(ws):
        raise UserError(
            f"{file} holds w of shape {list(ws.shape)}, and this generator needs [N, {num_ws}, {w_dim}]: "
            "give a w that was projected with it or with the generator that it was refined from."
        )
    return ws


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))


def _shrink(count: int, resolution: int) -> int:
    """The factor by which the images of a comparison are reduced, so that it can still be looked at."""
    return max(1, math.ceil(2 * _columns(count) * resolution / MAX_GRID_SIDE))


def _side_by_side(left: list[Image.Image], right: list[Image.Image]) -> Image.Image:
    """Two grids of as many pictures, the same picture at the same place in both."""
    from PIL import Image

    columns = _columns(len(left))
    rows = math.ceil(len(left) / columns)
    width, height = left[0].size
    canvas = Image.new(left[0].mode, (2 * columns * width + GAP, rows * height), "white")
    for half, start in ((left, 0), (right, columns * width + GAP)):
        for index, picture in enumerate(half):
            canvas.paste(picture, (start + index % columns * width, index // columns * height))
    return canvas


def _save(picture: Image.Image, path: Path) -> None:
    from refine.files.atomic import atomic_write

    with atomic_write(path) as file:
        picture.save(file, "PNG")
