"""Command-line options made from the options that sections declare, and types that several commands share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from refine.commands.base import Command, UserFailure, failure, printable
from refine.config import GROUPS, RunConfig
from refine.errors import OptionError, UserError
from refine.files.atomic import check_folder
from refine.options import Option

NETWORK = "PKL|URL|NAME"


class GroupedOption(click.Option):
    """An option that `--help` lists under the title of its group."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(Command):
    """A command whose `--help` lists options by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes each group as a section of its own."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in (*GROUPS, "Help")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections[getattr(parameter, "group", "Help")].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=34)


class FieldType(click.ParamType):
    """Type of an option that a section declares."""

    def __init__(self, field: Option) -> None:
        self.field, self.name = field, field.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Converts and checks what was typed; raises click's own error."""
        if not isinstance(value, str):
            return value
        try:
            return self.field.checked(self.field.from_text(value))
        except OptionError as error:
            raise failure(error) from error
        except ValueError as error:
            raise refusal(param, str(error)) from error

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offers the choices."""
        return [CompletionItem(choice) for choice in self.field.choices if choice.startswith(incomplete)]


class Finite(click.ParamType):
    """A number, neither infinite nor `nan`.

    Args:
        minimum: Least value allowed; None: any.
        maximum: Greatest value allowed; None: any.
    """

    name = "number"

    def __init__(self, minimum: float | None = None, maximum: float | None = None) -> None:
        self.minimum, self.maximum = minimum, maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Converts what was typed; raises click's own error."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if not (math.isfinite(number) and low <= number <= high):
            bounds = "" if self.minimum is None else f" of at least {self.minimum:g}"
            if self.maximum is not None:
                bounds = f" from {low:g} to {high:g}"
            raise refusal(param, f"must be a number{bounds}, not {value!r}.")
        return number


class Point(click.ParamType):
    """Two numbers with a comma between them."""

    name = "point"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Converts what was typed; raises click's own error."""
        parts = value.split(",") if isinstance(value, str) else value
        if len(parts) != 2:
            raise refusal(param, f"must be two numbers such as 0.3,-0.1, not {value!r}.")
        x, y = (Finite().convert(part, param, ctx) for part in parts)
        return x, y


class Whole(click.ParamType):
    """A whole number within bounds, both inclusive."""

    name = "whole number"

    def __init__(self, minimum: int, maximum: int) -> None:
        self.minimum, self.maximum = minimum, maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Converts what was typed; raises click's own error."""
        try:
            number = int(value)
        except ValueError:
            number = self.minimum - 1
        if not self.minimum <= number <= self.maximum:
            raise refusal(param, f"must be a whole number from {self.minimum} to {self.maximum}, not {value!r}.")
        return number


class Spec(click.ParamType):
    """A path, URL or zoo name, in which `~` is the home folder."""

    name = "spec"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Converts what was typed."""
        return os.path.expanduser(value)


class Folder(click.ParamType):
    """A folder, which need not exist; `~` is the home folder."""

    name = "folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Converts what was typed; raises click's own error."""
        path = Path(value).expanduser()
        if not value or (path.exists() and not path.is_dir()):
            raise refusal(param, f"must be a folder, not {value!r}.")
        return path


class OutFile(click.ParamType):
    """A file to write; `~` is the home folder.

    Args:
        suffixes: Suffixes that the file may have; empty: any.
    """

    name = "file"

    def __init__(self, *suffixes: str) -> None:
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Converts what was typed; raises click's own error."""
        path = Path(value).expanduser()
        if not path.name or path.is_dir():
            raise refusal(param, f"must be a file, not the folder {value!r}.")
        if self.suffixes and path.suffix.lower() not in self.suffixes:
            raise refusal(param, f"must be a name that ends in {' or '.join(self.suffixes)}, not {value!r}.")
        return path


def refusal(param: click.Parameter | None, message: str) -> UserFailure:
    """One sentence about the value of an option."""
    flag = max(param.opts, key=len) if param is not None else "The value"
    return UserFailure(printable(f"{flag} {message}"))


def check_output(path: Path, force: bool, inputs: Iterable[str | os.PathLike[str] | None] = ()) -> None:
    """Makes sure that a file can be written before any work is done, and that nothing is lost by it.

    Args:
        path: The file to be written.
        force: Whether a file of that name may be replaced.
        inputs: Files that are read; they are never replaced. Names other than of files are passed over.

    Raises:
        UserError: The file exists, is an input, or its folder is missing or not writable.
    """
    for each in inputs:
        if each is not None and path.exists() and os.path.exists(each) and os.path.samefile(path, each):
            raise UserError(f"{path} is read by this command and would be overwritten: choose another name.")
    if path.exists() and not force:
        raise UserError(f"{path} exists: choose another name, or add --force to overwrite it.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"Cannot write {path} because there is no folder {path.parent}: create that folder first.")
    check_folder(folder, path)


def field_option(field: Option, *, with_default: bool = False, **changes: Any) -> Callable[[Any], Any]:
    """The command-line option of a field, as a decorator.

    Args:
        field: The field of a section.
        with_default: Whether an option that is not typed has the field's default, instead of None.
        changes: Settings of `click.option` to be used in place of the field's own.
    """
    settings: dict[str, Any] = {"type": FieldType(field), "metavar": field.metavar, "help": field.help}
    if field.kind == "bool":
        settings |= {"is_flag": False, "flag_value": "1"}  # `--preflight` alone means 1
    if with_default and field.default is MISSING:
        settings["required"] = True
    elif with_default and field.default is not None:
        shown = int(field.default) if field.kind == "bool" else field.default
        settings |= {"default": str(shown), "show_default": True}
    return click.option(*field.flags, field.name, **(settings | changes))


def field_options(*names: str, **changes: dict[str, Any]) -> Callable[[Any], Any]:
    """Options of a run that another command has, too, with their defaults.

    Args:
        names: Fields of `RunConfig`.
        changes: For each field, settings of `click.option` to be used in place of the field's own.
    """
    fields = {field.name: field for field in RunConfig.options()}

    def decorate(command: Any) -> Any:
        for name in reversed(names):
            command = field_option(fields[name], with_default=True, **changes.get(name, {}))(command)
        return command

    return decorate


network_option = click.option(
    "--network", required=True, type=Spec(), metavar=NETWORK, help="StyleGAN pickle, or a run's .safetensors snapshot."
)
trust_option = click.option(
    "--trust-pickle", is_flag=True,
    help="Run the source embedded in a pickle where Refine has no network of its own, and the file of --gan.",
)  # fmt: skip
sigma_init_option = field_options("sigma_init")
gan_option = click.option(
    "--gan", metavar="FILE.py:FUNCTION",
    help="Function that makes the network of a .safetensors snapshot. Default: as it tells.",
)  # fmt: skip
force_option = click.option("--force", is_flag=True, help="Overwrite files that exist.")
device_option = field_options("device")
