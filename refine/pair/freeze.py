"""Which parts of a generator are trained, where the teacher sees less than the generator draws.

A teacher at 64 pixels says nothing about the layers that draw at 128 and above. They are frozen, together with the
mapping network, which would restyle them; gradients pass through them to the layers below.
"""

from __future__ import annotations

import re

import torch

from refine.config import parse_train_layers
from refine.errors import UserError


def select_layers(generator: torch.nn.Module, layers: str, teacher_resolution: int) -> list[str]:
    """Turns gradients on for the parameters to train and off for all others.

    Args:
        generator: with `img_resolution` and parameters named `mapping.*` and `synthesis.b<resolution>.*`.
        layers: `auto`, `all`, or resolutions such as "4,8,16".
        teacher_resolution: pixels that the teacher sees.

    Returns:
        The names of the parameters to train.

    Raises:
        UserError: resolutions that the generator does not have.
    """
    choice = parse_train_layers(layers)
    if choice == "auto":
        choice = "all" if teacher_resolution >= int(generator.img_resolution) else frozenset()  # type: ignore[arg-type]
        limit = teacher_resolution
    else:
        limit = 0
    resolutions = {name: _resolution(name) for name, _ in generator.named_parameters()}
    if isinstance(choice, frozenset) and choice - set(resolutions.values()):
        missing = sorted(choice - {r for r in resolutions.values() if r})
        raise UserError(f"--train-layers names {missing[0]} pixels; the generator has no such block.")
    names = []
    for name, parameter in generator.named_parameters():
        resolution = resolutions[name]
        train = choice == "all" or (resolution > 0 and (resolution <= limit or resolution in choice))
        parameter.requires_grad_(train)
        if train:
            names.append(name)
    if not names:
        raise UserError(
            f"--train-layers={layers} leaves nothing to train in this generator: name resolutions that it has, or all."
        )
    return names


def _resolution(name: str) -> int:
    """Pixels at which a parameter of the synthesis network works; 0 for the mapping network."""
    match = re.match(r"synthesis\.b(\d+)\.", name)
    return int(match[1]) if match else 0
