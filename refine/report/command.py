"""The command that repeats a run: its files and the options that differ from the defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from refine.config import RunConfig
from refine.files.addresses import without_secrets
from refine.presets import PRESETS

ALWAYS = ("gan", "teacher", "preset")


def defaults(preset: Any) -> list[dict[str, Any]]:
    """Values of options that are not given: for a pair with labels, and for one without.

    Args:
        preset: Name of the preset. With None, or a name that this version does not know, only the options that no
            preset sets have a default, since the command line would choose a preset by itself.
    """
    values = {f.name: f.default for f in fields(RunConfig) if f.default is not MISSING}
    if isinstance(preset, str) and preset in PRESETS:
        return [values | PRESETS[preset].options_for(conditional) for conditional in (True, False)]
    set_by_presets = {name for p in PRESETS.values() for name in (*p.options, *p.unconditional)}
    return [{name: value for name, value in values.items() if name not in set_by_presets}]


def changed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a command has to name: the files, the preset, and what differs from its defaults.

    Args:
        options: `training_options.json`.
    """
    variants = defaults(options.get("preset"))
    numbers = {f.name for f in fields(RunConfig) if re.search(r"\b(int|float)\b", str(f.type))}
    return {
        name: value
        for name, value in options.items()
        # The command line can say `none` for numbers only.
        if (value is not None or name in numbers)
        and (name in ALWAYS or any(_differs(value, name, variant) for variant in variants))
    }


def command(options: Mapping[str, Any]) -> str:
    """The command that repeats a run, for a POSIX shell: one option a line.

    Secrets in addresses are left out.

    Args:
        options: `training_options.json`.
    """
    words = [f"--{name.replace('_', '-')}={_text(value)}" for name, value in changed_options(options).items()]
    return " \\\n    ".join(["python refine.py", *(_quoted(without_secrets(word)) for word in words)])


def _differs(value: Any, name: str, variant: Mapping[str, Any]) -> bool:
    if name not in variant:
        return True
    default = variant[name]
    return value != (list(default) if isinstance(default, tuple) else default)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(int(value))
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _quoted(word: str) -> str:
    """For a POSIX shell; what needs no quotes has none."""
    return word if re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII) else "'" + word.replace("'", "'\"'\"'") + "'"
