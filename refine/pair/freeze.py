"""Freezing of what the teacher cannot judge, where it sees less than the generator draws.

A teacher at 64 pixels says nothing about the layers that draw at 128 and above. They are frozen, together with the
mapping network, which would restyle them; gradients pass through them to the layers below.
"""

from __future__ import annotations

from dataclasses import dataclass

from refine.contracts import Generator
from refine.errors import UserError


@dataclass(frozen=True)
class Layers:
    """Layers to train.

    Attributes:
        text: `auto` for those that the teacher can see, `all`, or resolutions such as "4,8,16".
        resolutions: The resolutions; empty for `auto` and `all`.
    """

    text: str = "auto"
    resolutions: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return self.text


def parse_layers(text: str | Layers) -> Layers:
    """Reads `auto`, `all`, or resolutions.

    Raises:
        UserError: The text is none of these.
    """
    if isinstance(text, Layers) or text in ("auto", "all"):
        return text if isinstance(text, Layers) else Layers(text)
    try:
        return Layers(text, frozenset(int(part) for part in text.split(",")))
    except (ValueError, AttributeError) as error:
        raise UserError(f"take auto, all or resolutions such as 4,8,16, not {text!r}.") from error


def select_layers(generator: Generator, layers: str | Layers, teacher_resolution: int) -> list[str]:
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
    layers = parse_layers(layers)
    resolutions = {name: generator.resolution_of(name) for name, _ in generator.module.named_parameters()}
    known = {resolution for resolution in resolutions.values() if resolution is not None}
    if layers.resolutions - known:
        raise UserError(
            f"--train-layers names {min(layers.resolutions - known)} pixels: the generator has no such block."
        )
    chosen = layers.resolutions or frozenset(r for r in known if r <= teacher_resolution)
    everything = layers.text == "all" or (layers.text == "auto" and teacher_resolution >= generator.img_resolution)
    names = [name for name, resolution in resolutions.items() if everything or resolution in chosen]
    for name, parameter in generator.module.named_parameters():
        parameter.requires_grad_(name in names)
    if not names:
        raise UserError(
            f"--train-layers={layers} leaves nothing to train in this generator: name resolutions that it has, or all."
        )
    return names
