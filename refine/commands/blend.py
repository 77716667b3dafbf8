"""`python -m refine blend --from=ORIGINAL.pkl --to=REFINED.pkl --alpha=0.5 --out=FILE`: between two generators.

Latents that were found for the original (projections, edits) still show nearly the same image in a generator that
is near it. How near is the owner's choice: the weights are interpolated, and how far images move is measured.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refine.commands.base import Command
from refine.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from refine.pickles import NetworkPickle

NETWORKS = ("G", "G_ema")


@click.command(cls=Command)
@click.option("--from", "origin", required=True, metavar="PKL|URL|NAME", help="The original generator, alpha 0.")
@click.option("--to", "refined", required=True, metavar="PKL|URL|NAME", help="The refined generator, alpha 1.")
@click.option("--alpha", "alphas", default="0.5", show_default=True, metavar="A[,A...]", help="How far to go, 0 to 1.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The pickle to write, for one alpha.")
@click.option("--seeds", default="0-15", show_default=True, help="Seeds of the images that are compared.")
@click.option("--trunc", "truncation_psi", type=float, default=1.0, show_default=True, help="Their truncation psi.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--trust-pickle", is_flag=True, help="Run embedded source where Refine has no network of its own.")
def main(
    origin: str,
    refined: str,
    alphas: str,
    out: Path | None,
    seeds: str,
    truncation_psi: float,
    device: str,
    trust_pickle: bool,
) -> None:
    """Interpolate the weights of two generators, and say how far images move at the same latents."""
    values = _parse_alphas(alphas)
    if out is not None and len(values) > 1:
        raise click.UsageError("--out is for one --alpha; without it, several are measured.")

    from refine import pickles, zoo  # torch takes seconds to import
    from refine.networks import loading
    from refine.networks.sampling import parse_seeds
    from refine.runtime.device import choose_device

    numbers, where = parse_seeds(seeds), choose_device(device)
    ends = [pickles.load(zoo.resolve(spec).path, trust=trust_pickle) for spec in (origin, refined)]
    weights = blendable(ends[0], ends[1])
    generator = loading.load_gan(str(ends[1].path), trust=trust_pickle)
    if generator.key not in weights:
        raise UserError(f"{ends[1].path} holds no generator in {' or '.join(NETWORKS)}.")
    moved = _measure(generator.network.to(where), weights[generator.key], values, numbers, truncation_psi)

    click.echo(f"Root mean square difference of {len(numbers)} images, in grey levels of 255, at the same latents:")
    click.echo(f"{'alpha':>8}  {'to --from':>9}  {'to --to':>9}")
    for alpha, (to_origin, to_refined) in zip(values, moved, strict=True):
        click.echo(f"{alpha:>8g}  {to_origin:>9.2f}  {to_refined:>9.2f}")
    if out is not None:
        pickles.save(ends[1], out, {key: interpolate(*pair, values[0]) for key, pair in weights.items()})
        click.echo(f"Wrote {' and '.join(weights)} at alpha {values[0]:g}, the rest as in {ends[1].path}: {out}")


def _parse_alphas(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 <= value <= 1 for value in values):
        raise UserError(f"--alpha must be numbers from 0 (the original) to 1 (the refined one), not {text!r}.")
    return values


def blendable(origin: NetworkPickle, refined: NetworkPickle) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The tensors of both pickles' generators, by entry: `{"G_ema": (original's, refined's)}`.

    Raises:
        UserError: they have no generator in common, or one of another architecture.
    """
    from refine.pickles import PersistentObject, named_tensors

    found = {}
    for key in NETWORKS:
        records = [pickle.get(key) for pickle in (origin, refined)]
        if not all(isinstance(record, PersistentObject) for record in records):
            continue
        first, second = (named_tensors(record) for record in records)
        for name in [*(n for n in first if n not in second), *(n for n in second if n not in first)]:
            raise UserError(
                f"{origin.path} and {refined.path} cannot be blended: only one of them has a tensor {key}.{name}."
            )
        for name, record in first.items():
            if record.shape != second[name].shape:
                raise UserError(
                    f"{origin.path} and {refined.path} cannot be blended: {key}.{name} is {list(record.shape)} in one "
                    f"and {list(second[name].shape)} in the other."
                )
        found[key] = tuple({name: record.read() for name, record in side.items()} for side in (first, second))
    if not found:
        raise UserError(f"{origin.path} and {refined.path} have no {' or '.join(NETWORKS)} in common to blend.")
    return found  # type: ignore[return-value]


def interpolate(origin: dict[str, Tensor], refined: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) * origin + alpha * refined for every tensor; exactly one of them at 0 and 1."""
    return {
        name: start.lerp(refined[name], alpha) if start.is_floating_point() else refined[name]
        for name, start in origin.items()
    }


def _measure(
    network: Any,
    ends: tuple[dict[str, Tensor], dict[str, Tensor]],
    alphas: tuple[float, ...],
    seeds: tuple[int, ...],
    truncation_psi: float,
) -> list[tuple[float, float]]:
    """For each alpha, how far the images are from the original's and from the refined generator's."""
    import torch
    from tqdm import tqdm

    from refine.networks.sampling import images_of, squared_difference

    device = next(network.parameters()).device

    def images(alpha: float) -> list[Tensor]:
        network.load_state_dict(interpolate(*ends, alpha))
        found: list[Tensor] = []
        for seed in seeds:
            class_index = seed % network.c_dim if network.c_dim else None
            found += images_of(network, [seed], class_index, truncation_psi, device=device)
        return found

    def rms(some: list[Tensor], others: list[Tensor]) -> float:
        squares = [squared_difference(a, b) for a, b in zip(some, others, strict=True)]
        return math.sqrt(torch.tensor(squares, dtype=torch.float64).mean().item())

    origin, refined = images(0.0), images(1.0)
    moved = []
    for alpha in tqdm(alphas, desc="blend", unit="alpha", disable=None):
        between = images(alpha)
        moved.append((rms(between, origin), rms(between, refined)))
    return moved
