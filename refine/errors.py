"""Exceptions that a user is meant to read."""

from __future__ import annotations

import re
from collections.abc import Callable

_OPTION = re.compile(r"\{(\w+)(?:=((?:[^{}]|\{\{|\}\})*))?\}|\{\{|\}\}")
_TYPED = {"True": "1", "False": "0", "None": "none"}  # values as the command line has them


class UserError(ValueError):
    """Something the user can mend. The message is one sentence: the file, the value, the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


class OptionError(UserError):
    """An option has an impossible value, or two options contradict each other.

    `str()` names options as Python spells them, `fake_augment=0`; `as_typed()` as the command line does,
    `--fake-augment=0`.

    Args:
        template: The message, with each option in braces: "{share_unet=True} needs {fake_augment=0}." Other text that
            may have braces, such as a path, goes through `literal`.
    """

    def __init__(self, template: str) -> None:
        super().__init__(template)
        self.template = template

    def __str__(self) -> str:
        return self._said(lambda name, value: name if value is None else f"{name}={value}")

    def as_typed(self) -> str:
        """The message for whoever typed a command."""

        def option(name: str, value: str | None) -> str:
            return f"--{name.replace('_', '-')}" + ("" if value is None else f"={_TYPED.get(value, value)}")

        return self._said(option)

    def _said(self, option: Callable[[str, str | None], str]) -> str:
        """The message, with options spelled by a function of name and value."""

        def spelled(found: re.Match[str]) -> str:
            if found[1] is None:
                return found[0][0]  # a brace of its own
            return option(found[1], None if found[2] is None else _single(found[2]))

        return _OPTION.sub(spelled, self.template)


def literal(text: object) -> str:
    """Text that stays as it is in the template of an `OptionError`, braces and all."""
    return str(text).replace("{", "{{").replace("}", "}}")


def template_of(error: UserError) -> str:
    """The template of an `OptionError` that says the same as another error."""
    return error.template if isinstance(error, OptionError) else literal(error)


def _single(text: str) -> str:
    return text.replace("{{", "{").replace("}}", "}")
