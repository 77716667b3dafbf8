"""Settings of an ADM denoiser that its state dict does not tell: `num_head_channels=64,attention_order=old,...`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from refine.errors import UserError

CHOICES = {
    "attention_order": ("old", "new"),
    "noise_schedule": ("linear", "cosine"),
    "preconditioning": ("epsilon", "edm", "consistency"),
}
LARGEST = {"image_size": 2**16, "num_heads": 2**10, "num_head_channels": 2**16}
EXAMPLE = "num_head_channels=64,attention_order=old,noise_schedule=linear"


@dataclass(frozen=True)
class ADMSettings:
    """What has to be known of a state dict besides its tensors; None where it is not known.

    The names are those of guided-diffusion's command line, where it has them.

    Attributes:
        image_size: Height and width of an image in pixels.
        num_heads: Attention heads, the same number at every resolution.
        num_head_channels: Channels of an attention head; wins over `num_heads`.
        attention_order: Order of the rows of `qkv`: "old", or "new" for use_new_attention_order.
        noise_schedule: The 1000 noise levels: "linear" or "cosine".
        preconditioning: Meaning of the output: "epsilon" for guided-diffusion, "edm" or "consistency" for
            consistency_models.
        dropout: Probability of dropping an activation when the network is trained as the fake score.
    """

    image_size: int | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    attention_order: str | None = None
    noise_schedule: str | None = None
    preconditioning: str | None = None
    dropout: float | None = None

    def __str__(self) -> str:
        """Text that `parse_settings` reads; `none` without any setting."""
        return ",".join(f"{name}={value}" for name, value in self.known().items()) or "none"

    def known(self) -> dict[str, Any]:
        """The settings that are not None, by name."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}

    def or_else(self, others: ADMSettings) -> ADMSettings:
        """These settings, with others where they are None; heads are one setting with two spellings."""
        missing = {name: value for name, value in others.known().items() if getattr(self, name) is None}
        if self.num_heads is not None or self.num_head_channels is not None:
            missing = {name: value for name, value in missing.items() if name not in ("num_heads", "num_head_channels")}
        return replace(self, **missing)


def parse_settings(text: str | Mapping[str, Any] | ADMSettings) -> ADMSettings:
    """Parses `NAME=VALUE,NAME=VALUE`, or `none`.

    Raises:
        UserError: A name is unknown, or a value impossible.
    """
    if isinstance(text, ADMSettings):
        return text
    if isinstance(text, str):
        parts = [] if text.strip().lower() in ("", "none") else text.split(",")
        pairs = [part.partition("=")[::2] for part in parts]
        text = {name.strip(): value.strip() for name, value in pairs}
        if len(text) != len(parts):
            raise UserError("a setting is given twice.")
    if not isinstance(text, Mapping):
        raise UserError(f"{text!r:.80} is not text such as {EXAMPLE}.")
    return ADMSettings(**{name: _value(name, value) for name, value in text.items()})


def _value(name: Any, value: Any) -> Any:
    known = [each.name for each in fields(ADMSettings)]
    if name not in known:
        raise UserError(f"there is no setting {name!r:.80}; the settings are {', '.join(known)}.")
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise UserError(f"{name} is one of {', '.join(CHOICES[name])}, not {value!r:.80}.")
        return value
    try:
        number = float(value) if name == "dropout" else int(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name} is a number, not {value!r:.80}.") from None
    if name == "dropout":
        if not (math.isfinite(number) and 0 <= number < 1):
            raise UserError(f"dropout is a probability from 0 to below 1, not {value!r:.80}.")
    elif not 1 <= number <= LARGEST[name]:
        raise UserError(f"{name} is a whole number from 1 to {LARGEST[name]}, not {value!r:.80}.")
    return number
