"""Exceptions that a user is meant to read."""

from __future__ import annotations

import re

_OPTION = re.compile(r"\{(\w+)(?:=([^{}]*))?\}")
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
        template: The message, with each option in braces: "{share_unet=True} needs {fake_augment=0}."
    """

    def __init__(self, template: str) -> None:
        super().__init__(template)
        self.template = template

    def __str__(self) -> str:
        return _OPTION.sub(lambda found: found[0][1:-1], self.template)

    def as_typed(self) -> str:
        """The message for whoever typed a command."""

        def option(found: re.Match[str]) -> str:
            value = "" if found[2] is None else f"={_TYPED.get(found[2], found[2])}"
            return f"--{found[1].replace('_', '-')}{value}"

        return _OPTION.sub(option, self.template)
