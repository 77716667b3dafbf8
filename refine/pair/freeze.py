"""Freezing of what the teacher cannot judge, where it sees less than the generator draws.

A teacher at 64 pixels says nothing about the layers that draw at 128 and above. They are frozen, together with the
mapping network, which would restyle them; gradients pass through them to the layers below.
"""

from __future__ import annotations

from refine.contracts import Generator
from refine.errors import UserError


def parse_train_layers(text: str) -> str | frozenset[int]:
    """`auto`, `all`, or the resolutions to train.

    Raises:
        UserError: The text is none of these.
    """
    if text in ("auto", "all"):
        return text
    try:
        return frozenset(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--train-layers must be auto, all or resolutions such as 4,8,16, not {text!r}.") from error


def select_layers(generator: Generator, layers: str, teacher_resolution: int) -> list[str]:
    """Turns gradients on for the parameters to train and off for all others.

    Args:
        generator: The generator; `resolution_of` tells where a parameter works.
        layers: `auto`, `all`, or resolutions such as "4,8,16".
        teacher_resolution: Pixels that the teacher sees.

    Returns:
        The names of the parameters to train.

    Raises:
        UserError: The generator lacks a resolution, or nothing is left to train.
    """
    choice = parse_train_layers(layers)
    resolutions = {name: generator.resolution_of(name) for name, _ in generator.module.named_parameters()}
    known = {resolution for resolution in resolutions.values() if resolution is not None}
    if choice == "auto":
        all_seen = teacher_resolution >= generator.img_resolution
        choice = "all" if all_seen else frozenset(r for r in known if r <= teacher_resolution)
    elif isinstance(choice, frozenset) and choice - known:
        raise UserError(f"--train-layers names {min(choice - known)} pixels; the generator has no such block.")
    names = [name for name, resolution in resolutions.items() if choice == "all" or resolution in choice]
    for name, parameter in generator.module.named_parameters():
        parameter.requires_grad_(name in names)
    if not names:
        raise UserError(
            f"--train-layers={layers} leaves nothing to train in this generator: name resolutions that it has, or all."
        )
    return names
