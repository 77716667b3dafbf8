"""Options declared once: dataclass fields that carry their help, group, bounds and spelling.

A section is a frozen dataclass of such fields. The command line, `--help`, the checks, JSON and configuration files
are all made from them:

    @dataclass(frozen=True, kw_only=True)
    class LengthOptions(Section):
        batch: int = option(128, "Images per step, over all processes.", "Optimization", minimum=1)
"""

from __future__ import annotations

import importlib
import json
import math
import numbers
import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from refine.errors import OptionError, UserError, literal, template_of

MAX_INT = 2**31 - 1  # of any option: what fits into the integers of files and tensors
_FLAGS = {**dict.fromkeys(("1", "true", "t", "yes", "y", "on"), True),
          **dict.fromkeys(("0", "false", "f", "no", "n", "off"), False)}  # fmt: skip
_KINDS = {  # annotation -> the same in words
    "str": "text",
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "tuple[int, ...]": "whole numbers",
}
S = TypeVar("S", bound="Section")


@dataclass(frozen=True, kw_only=True)
class Option:
    """A field of a section, as checks and commands see it.

    Attributes:
        name: The field's name; `--like-this` on the command line.
        kind: "str", "bool", "int", "float", "tuple[int, ...]", or "parsed" for text that becomes an object.
        optional: Whether None is a value; `none` on the command line.
        default: `dataclasses.MISSING` if the option has to be given.
        help: One phrase for `--help`.
        group: Title under which `--help` lists the option.
        metavar: Placeholder for the value in `--help`.
        minimum, above: Inclusive and exclusive lower bound of a number.
        maximum, below: Inclusive and exclusive upper bound of a number.
        choices: The values that text may have; empty: any.
        parse: "module:function" that turns text into an object and leaves such an object as it is. Given as text,
            because the function may import torch, for which `--help` should not wait.
        path: Whether the text may be a path: `Path` objects are taken, and `~` is the home folder.
        spellings: Further names on the command line, the first of which `--help` lists first.
    """

    name: str
    kind: str
    optional: bool
    default: Any
    help: str
    group: str
    metavar: str
    minimum: float | None
    above: float | None
    maximum: float | None
    below: float | None
    choices: tuple[str, ...]
    parse: str | None
    path: bool
    spellings: tuple[str, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """Spellings on the command line, `--batch-gpu`."""
        return tuple(f"--{name.replace('_', '-')}" for name in (*self.spellings, self.name))

    @property
    def expected(self) -> str:
        """Description of possible values: "a whole number of at least 1 or None"."""
        text = f"one of {', '.join(self.choices)}" if self.choices else f"{_KINDS[self.kind]}{self._bounds()}"
        return f"{text} or None" if self.optional else text

    def _bounds(self) -> str:
        if self.minimum is None:
            lower = "" if self.above is None else f" above {self.above:.10g}"
            return lower + ("" if self.maximum is None else f"{' and' if lower else ''} at most {self.maximum:.10g}")
        if self.maximum is not None:
            return f" from {self.minimum:.10g} to {self.maximum:.10g}"
        if self.below is not None:
            return f" from {self.minimum:.10g} to below {self.below:.10g}"
        return f" of at least {self.minimum:.10g}"

    def checked(self, value: Any) -> Any:
        """The value in the field's own type.

        Raises:
            OptionError: The value is of another type, not finite, out of bounds, or none of the choices.
        """
        if value is None and self.optional:
            return None
        if self.kind == "parsed":
            return self._parsed(value)
        converted = self._converted(value)
        if converted is None or not self._is_allowed(converted):
            raise OptionError(f"{{{self.name}}} must be {self.expected}, not {literal(repr(value))}.")
        if isinstance(converted, int) and converted > MAX_INT:
            raise OptionError(f"{{{self.name}}} must be at most {MAX_INT}, not {value!r}.")
        return converted

    def from_text(self, text: str) -> Any:
        """The value that was typed, not yet checked against bounds.

        Raises:
            ValueError: The text is no such value; the message says what is expected.
        """
        stripped = text.strip()
        if self.optional and stripped.lower() == "none":
            return None
        try:
            if self.kind == "bool":
                return _FLAGS[stripped.lower()]
            if self.kind == "int":
                return int(stripped)
            if self.kind == "float":
                return float(stripped)
            if self.kind == "tuple[int, ...]":
                return tuple(int(part) for part in stripped.split(","))
        except (KeyError, ValueError):
            expected = {"bool": "0 or 1", "tuple[int, ...]": "whole numbers such as 3,0,1"}.get(
                self.kind, self.expected
            )
            raise ValueError(f"must be {expected.replace(' or None', ' or none')}, not {text!r}.") from None
        return text

    def to_json(self, value: Any) -> Any:
        """The value as JSON has it: objects become their text again."""
        if self.kind == "parsed" and value is not None:
            return str(value)
        return list(value) if isinstance(value, tuple) else value

    def _parsed(self, value: Any) -> Any:
        assert self.parse is not None
        try:
            return named(self.parse)(value)
        except UserError as error:
            raise OptionError(f"{{{self.name}}}: {template_of(error)}") from error

    def _converted(self, value: Any) -> Any:
        """The value in the field's type; None: it is of another type."""
        is_bool = isinstance(value, bool)
        if self.kind == "bool":
            return value if is_bool else None
        if self.kind == "int":
            return int(value) if isinstance(value, numbers.Integral) and not is_bool else None
        if self.kind == "float":
            return _to_float(value) if isinstance(value, numbers.Real) and not is_bool else None
        if self.kind == "str":
            if self.path and isinstance(value, os.PathLike):
                value = os.fspath(value)
            if not isinstance(value, str):
                return None
            return os.path.expanduser(value) if self.path else value
        if isinstance(value, tuple | list):
            whole = all(isinstance(entry, numbers.Integral) and not isinstance(entry, bool) for entry in value)
            return tuple(int(entry) for entry in value) if whole else None
        return None

    def _is_allowed(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return (
            math.isfinite(value)
            and (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
        )


def named(function: str) -> Any:
    """The function meant by "module:function", imported when it is needed."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _to_float(value: Any) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


def option(
    default: Any = MISSING,
    help: str = "",
    group: str = "",
    *,
    metavar: str = "",
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    parse: str | None = None,
    path: bool = False,
    spellings: Sequence[str] = (),
) -> Any:
    """A field of a section; `Option` describes the arguments."""
    settings = {
        "help": help, "group": group, "metavar": metavar, "minimum": minimum, "above": above, "maximum": maximum,
        "below": below, "choices": tuple(choices), "parse": parse, "path": path, "spellings": tuple(spellings),
    }  # fmt: skip
    return field(metadata=settings) if default is MISSING else field(default=default, metadata=settings)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Options that belong together, checked when the record is made.

    Raises:
        OptionError: An option has an impossible value, or two contradict each other.
    """

    def __post_init__(self) -> None:
        for each in self.options():
            object.__setattr__(self, each.name, each.checked(self[each.name]))
        self.check()

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def check(self) -> None:
        """Refuses options that contradict each other. Sections extend it by way of `super()`."""

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """The options of the section, in the order of their declaration."""
        return tuple(_described(each) for each in fields(cls))

    def section(self, kind: type[S]) -> S:
        """The options of another section, all of which this one has."""
        return kind(**{each.name: self[each.name] for each in kind.options()})

    def to_dict(self) -> dict[str, Any]:
        """The options as values that JSON knows."""
        return {each.name: each.to_json(self[each.name]) for each in self.options()}

    def to_json(self) -> str:
        """The options as text, a line for each."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def _described(each: Any) -> Option:
    annotation, _, none = str(each.type).partition(" | ")
    settings = dict(each.metadata)
    kind = "parsed" if settings["parse"] else annotation
    return Option(name=each.name, kind=kind, optional=none == "None", default=each.default, **settings)
