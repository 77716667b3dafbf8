"""Objectives of the refinement: pure functions on tensors, without optimizer, files or options of a run.

A new objective is one file here, and one entry in `OBJECTIVES`.
"""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

from refine.errors import UserError
from refine.objectives.ikl import IKL
from refine.objectives.objective import Objective, Scores
from refine.objectives.sds import SDS

OBJECTIVES: dict[str, type[Objective]] = {kind.name: kind for kind in (IKL, SDS)}

__all__ = ["IKL", "OBJECTIVES", "SDS", "Objective", "Scores", "parse_objective"]


def parse_objective(text: str | Objective) -> Objective:
    """Objective from its text: a name, and parameters behind a colon.

    `ikl`, `ikl:weighting=dmd`, and `ikl:dmd`, where the first parameter goes without its name.

    Raises:
        UserError: The name or a parameter is unknown, or a value is impossible.
    """
    if isinstance(text, Objective):
        return text
    if not isinstance(text, str):
        raise UserError(f"an objective is text such as ikl:weighting=dmd, not {text!r}.")
    name, _, rest = text.partition(":")
    if name not in OBJECTIVES:
        raise UserError(f"{text!r} is no objective: take one of {', '.join(OBJECTIVES)}.")
    kind = OBJECTIVES[name]
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}
    values: dict[str, Any] = {}
    for index, part in enumerate(rest.split(",") if rest else ()):
        key, equals, value = part.partition("=")
        if not equals and index == 0 and known:
            key, value = next(iter(known)), part
        if key.strip() not in known:
            options = f"its parameters are {', '.join(known)}" if known else "it has no parameters"
            raise UserError(f"{name} has no parameter {key.strip()!r}; {options}.")
        field = known[key.strip()]
        default: Any = field.default
        try:
            values[field.name] = type(default)(value.strip())
        except ValueError as error:
            raise UserError(f"{field.name} of {name} must be a number, not {value!r}.") from error
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{error}.") from error
