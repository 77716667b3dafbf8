"""Freezing of the layers that a teacher of lower resolution cannot judge.

A teacher at 64 pixels gives no useful gradient for the layers at 128 pixels and above. These layers are frozen,
together with the mapping network, which would restyle them; gradients pass through them to the layers below.
"""

from __future__ import annotations

from dataclasses import dataclass

from refine.contracts import Generator
from refine.errors import OptionError, UserError


@dataclass(frozen=True)
class Layers:
    """Layers to train.

    Attributes:
        text: `auto` for the layers that the teacher can see, `all`, or resolutions in pixels such as "4,8,16".
        resolutions: Resolutions in pixels; empty for `auto` and `all`.
    """

    text: str = "auto"
    resolutions: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return self.text


def parse_layers(text: str | Layers) -> Layers:
    """Parses `auto`, `all`, or resolutions.

    Raises:
        UserError: The text is neither.
    """
    if isinstance(text, Layers) or text in ("auto", "all"):
        return text if isinstance(text, Layers) else Layers(text)
    try:
        return Layers(text, frozenset(int(part) for part in text.split(",")))
    except (ValueError, AttributeError) as error:
        raise UserError(f"use auto, all or resolutions such as 4,8,16, not {text!r}.") from error


def select_layers(generator: Generator, layers: str | Layers, teacher_resolution: int) -> list[str]:
    """Turns gradients on for the parameters to train and off for all others.

    Args:
        generator: Generator whose `requires_grad` flags are set.
        layers: Layers to train: `auto`, `all`, or resolutions such as "4,8,16".
        teacher_resolution: Height and width of the teacher's images in pixels.

    Returns:
        Names of the parameters to train.

    Raises:
        UserError: The generator has no layer of a given resolution, or no parameter is left to train.
    """
    layers = parse_layers(layers)
    resolutions = {name: generator.resolution_of(name) for name, _ in generator.module.named_parameters()}
    known = {resolution for resolution in resolutions.values() if resolution is not None}
    if layers.resolutions and not known:
        raise OptionError(
            f"{{train_layers={layers}}} chooses blocks of a StyleGAN by their resolution, and this generator has no "
            "such blocks: leave it out."
        )
    if layers.resolutions - known:
        raise OptionError(
            f"{{train_layers}} contains {min(layers.resolutions - known)}, and the generator has no block of "
            f"{min(layers.resolutions - known)} pixels: use some of {', '.join(map(str, sorted(known)))}."
        )
    chosen = layers.resolutions or frozenset(r for r in known if r <= teacher_resolution)
    sees_all = teacher_resolution >= generator.img_resolution or not known
    everything = layers.text == "all" or (layers.text == "auto" and sees_all)
    names = [name for name, resolution in resolutions.items() if everything or resolution in chosen]
    for name, parameter in generator.module.named_parameters():
        parameter.requires_grad_(name in names)
    if not names:
        raise OptionError(f"{{train_layers={layers}}} leaves no parameter to train in this generator: use all.")
    return names
