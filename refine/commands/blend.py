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
from refine.commands.locate import network_file
from refine.commands.options import (
    NETWORK,
    Finite,
    OutFile,
    Spec,
    check_output,
    device_option,
    force_option,
    refusal,
    sigma_init_option,
    trust_option,
)
from refine.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from refine.pickles import NetworkPickle

NETWORKS = ("G", "G_ema", "net", "ema")


class _Alphas(click.ParamType):
    name = "alphas"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Converts `0.25,0.5`; raises click's own error."""
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(0 <= number <= 1 for number in numbers):
            raise refusal(param, f"must be numbers from 0 (the original) to 1 (the refined one), not {value!r}.")
        return numbers


@click.command(cls=Command)
@click.option("--from", "origin", required=True, type=Spec(), metavar=NETWORK, help="The original generator, alpha 0.")
@click.option("--to", "refined", required=True, type=Spec(), metavar=NETWORK, help="The refined generator, alpha 1.")
@click.option(
    "--alpha",
    "alphas",
    type=_Alphas(),
    default="0.5",
    show_default=True,
    metavar="A[,A...]",
    help="How far to go, 0 to 1.",
)
@click.option("--out", type=OutFile(".pkl"), metavar="PKL", help="Pickle to write, for one alpha.")
@click.option("--seeds", default="0-15", show_default=True, metavar="0-35,40", help="Seeds of the images to compare.")
@click.option(
    "--trunc", "truncation_psi", type=Finite(), metavar="PSI", default=1.0, show_default=True, help="Truncation psi."
)
@sigma_init_option
@force_option
@device_option
@trust_option
def main(
    origin: str,
    refined: str,
    alphas: tuple[float, ...],
    out: Path | None,
    seeds: str,
    truncation_psi: float,
    sigma_init: float | None,
    force: bool,
    device: str,
    trust_pickle: bool,
) -> None:
    """Interpolate the weights of two generators, and measure how far images move at the same latents."""
    if out is not None and len(alphas) > 1:
        raise click.UsageError("--out is for one --alpha; without it, several are measured.")
    origin, refined = network_file(origin), network_file(refined)
    if out is not None:
        check_output(out, force, (origin, refined))

    from refine import pickles, zoo  # torch takes seconds to import
    from refine.networks import loading
    from refine.networks.sampling import parse_seeds
    from refine.runtime.device import choose_device

    numbers, where = parse_seeds(seeds), choose_device(device)
    ends = [pickles.load(file.path, trust=trust_pickle) for file in zoo.resolve_all((origin, refined))]
    weights = blendable(ends[0], ends[1])
    generator = loading.generator_of(ends[1], sigma_init=sigma_init)
    _require_same_sigma(loading.generator_of(ends[0], sigma_init=sigma_init).network, generator.network)
    if generator.key not in weights:
        raise UserError(
            f"{ends[0].path} has no {generator.key}, which is the generator of {ends[1].path}: give a pickle with both."
        )
    moved = _measure(generator.network.to(where), weights[generator.key], alphas, numbers, truncation_psi)

    plural = "" if len(numbers) == 1 else "s"
    click.echo(
        f"Root mean square difference of {len(numbers)} image{plural} at the same latents, in gray levels of 255:"
    )
    click.echo(f"{'alpha':>8}  {'to --from':>9}  {'to --to':>9}")
    for alpha, (to_origin, to_refined) in zip(alphas, moved, strict=True):
        click.echo(f"{alpha:>8g}  {to_origin:>9.2f}  {to_refined:>9.2f}")
    if out is not None:
        pickles.save(ends[1], out, {key: interpolate(*pair, alphas[0]) for key, pair in weights.items()})
        click.echo(f"Wrote {' and '.join(weights)} at alpha {alphas[0]:g}, the rest as in {ends[1].path}: {out}")


def _require_same_sigma(origin: Any, refined: Any) -> None:
    """Refuses one-step generators of different noise levels, whose blend would be of neither."""
    levels = [getattr(generator, "sigma_init", None) for generator in (origin, refined)]
    if levels[0] != levels[1]:
        raise UserError(
            f"--from is a one-step generator of sigma_init {levels[0]:g} and --to of {levels[1]:g}: blend two of the "
            "same noise level."
        )


def blendable(origin: NetworkPickle, refined: NetworkPickle) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The tensors of both pickles' generators, by entry: `{"G_ema": (original's, refined's)}`.

    Raises:
        UserError: The pickles have no generator in common, one is of another architecture, or holds what is not finite.
    """
    from refine.pickles import NetworkRecord, named_tensors
    from refine.pickles.finite import require_finite

    found = {}
    for key in NETWORKS:
        records = [pickle.get(key) for pickle in (origin, refined)]
        if not all(isinstance(record, NetworkRecord) for record in records):
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
        for pickle, side in ((origin, first), (refined, second)):
            require_finite({f"{key}.{name}": record for name, record in side.items()}, str(pickle.path))
        found[key] = tuple({name: record.read() for name, record in side.items()} for side in (first, second))
    if not found:
        raise UserError(f"{origin.path} and {refined.path} have no entry ({', '.join(NETWORKS)}) in common to blend.")
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
