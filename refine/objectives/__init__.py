"""Objectives of the refinement: pure functions on tensors, without optimizer, files or options of a run.

A new objective is one file here, and one entry in `OBJECTIVES`.
"""

from __future__ import annotations

import re
from dataclasses import Field, fields
from typing import Any

from refine.errors import UserError
from refine.objectives.f_distill import FDistill
from refine.objectives.fisher import Fisher
from refine.objectives.ikl import IKL
from refine.objectives.objective import Objective, Scores
from refine.objectives.sds import SDS
from refine.objectives.sid import FGM, UID, SiD
from refine.objectives.sim import SIM
from refine.objectives.smart import SMaRt

OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind for kind in (IKL, SiD, SIM, FGM, UID, FDistill, Fisher, SDS, SMaRt)
}

__all__ = [
    "FGM", "IKL", "OBJECTIVES", "SDS", "SIM", "UID", "FDistill", "Fisher", "Objective", "SMaRt", "Scores", "SiD",
    "parse_objective",
]  # fmt: skip

_SWITCHES = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


def parse_objective(text: str | Objective) -> Objective:
    """Parses an objective: a name, and parameters after colons or commas.

    Examples: `ikl`, `ikl:weighting=dmd`, `f:skew:alpha=0.3`. The first parameter may go without its name: `ikl:dmd`.

    Raises:
        UserError: The name or a parameter is unknown, or a value is impossible.
    """
    if isinstance(text, Objective):
        return text
    if not isinstance(text, str):
        raise UserError(f"an objective is text such as ikl:weighting=dmd, not {text!r}.")
    name, *parts = (part.strip() for part in re.split("[:,]", text))
    if name not in OBJECTIVES:
        raise UserError(f"{text!r} is not an objective: use one of {', '.join(OBJECTIVES)}.")
    kind = OBJECTIVES[name]
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}
    values: dict[str, Any] = {}
    for index, part in enumerate(parts):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and index == 0 and known:
            key, value, equals = next(iter(known)), part, "="
        if key not in known:
            options = f"its parameters are {', '.join(known)}" if known else "it has no parameters"
            raise UserError(f"{name} has no parameter {key!r}; {options}.")
        if not equals or key in values:
            raise UserError(f"{text!r} must give {key} one value, such as {key}={known[key].default}.")
        values[key] = _parse_value(name, key, value, known[key].default)
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{text!r} is impossible: {error}.") from error


def _parse_value(name: str, key: str, value: str, default: Any) -> Any:
    """A parameter's value, of the type of its default."""
    try:
        if isinstance(default, bool):
            return _SWITCHES[value.lower()]
        return type(default)(value)
    except (KeyError, ValueError) as error:
        what = "0 or 1" if isinstance(default, bool) else "a number"
        raise UserError(f"{key} of {name} must be {what}, not {value!r}.") from error
