"""Options from a file: JSON or YAML as `training_options.json` is."""

from __future__ import annotations

import difflib
import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from refine.config import RunConfig, migrated
from refine.errors import OptionError, UserError
from refine.options import Option

MAX_BYTES = 1_000_000


def read_config(path: Path) -> dict[str, Any]:
    """The options in a file, by the names of their fields, each of them checked.

    A name may be written as on the command line, `batch-gpu` or `tick`. Paths are relative to the current folder.

    Raises:
        UserError: The file cannot be read, is neither JSON nor YAML, or an option is unknown, doubled or impossible.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is too large for a file of options: give a training_options.json or the like.")
        parsed = _parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a JSON or YAML file to --config.") from error
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is neither JSON nor YAML ({reason}): correct or replace it.") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{path} contains no options: write lines such as `batch: 32`.")
    fields = {name: field for field in RunConfig.options() for name in (field.name, *field.spellings)}
    found: dict[str, Any] = {}
    for key, value in migrated(parsed).items():
        field = fields.get(str(key).replace("-", "_"))
        if field is None:
            close = difflib.get_close_matches(str(key).replace("-", "_"), fields, 1)
            hint = f"did you mean {close[0]}?" if close else "python refine.py --help lists the options."
            raise UserError(f"{path} has an option {key!r} that does not exist: {hint}")
        if field.name in found:
            raise UserError(f"{path} gives {field.name} twice: keep one of them.")
        found[field.name] = _checked(path, field, value)
    return found


def _checked(path: Path, field: Option, value: Any) -> Any:
    try:
        # YAML reads 1e-5 as text; a list of classes may be written as on the command line.
        is_other_kind = isinstance(value, str) and field.kind not in ("str", "parsed")
        return field.checked(field.from_text(value) if is_other_kind else value)
    except OptionError as error:
        raise UserError(f"In {path}, {error}") from error
    except ValueError as error:
        raise UserError(f"In {path}, {field.name} {error}") from error


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        try:
            return yaml.load(text, Loader=_Loader)
        except yaml.YAMLError:
            if text.lstrip().startswith("{"):  # JSON with a mistake in it, which YAML would describe worse
                raise error from None
            raise


def _without_doubles(pairs: list[tuple[Hashable, Any]]) -> dict[Hashable, Any]:
    entries: dict[Hashable, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise ValueError(f"{key!r} stands there twice")
        entries[key] = value
    return entries


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which would let the last of two equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The entries of a mapping, each of which may stand there once."""
        _without_doubles([(self.construct_object(key, deep=True), None) for key, _ in node.value])
        return super().construct_mapping(node, deep)
