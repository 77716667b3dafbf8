"""What all commands of Refine share: errors as one sentence, exit codes, `--debug`, and messages on stderr.

Exit codes: 0 done, 1 an error that Refine does not know, 2 something the user can mend, 130 interrupted (Ctrl-C).
"""

from __future__ import annotations

import io
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from refine.errors import OptionError, UserError

MAX_CHARACTERS = 900


class Command(click.Command):
    """A click command that never shows a traceback unless asked: `@click.command(cls=Command)`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.params.append(click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command's function; exceptions become sentences and exit codes."""
        debug = ctx.params.pop("debug")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error
        try:
            with _messages_on_stderr(logging.DEBUG if debug else logging.INFO):
                return super().invoke(ctx)
        # click's own, and a closed pipe (`| head`), which click ends quietly.
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)
        except Exception as error:
            if debug:
                traceback.print_exc()
            raise _failure(error) from error


class _UserFailure(click.ClickException):
    exit_code = 2


def printable(text: str) -> str:
    """One line of bounded length that cannot move a terminal's cursor: names from foreign files end up in messages."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:MAX_CHARACTERS])
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + "..."


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage())


def _failure(error: Exception) -> click.ClickException:
    text = error.as_typed() if isinstance(error, OptionError) else str(error)
    message = printable(" ".join(text.split()))
    if isinstance(error, UserError):
        return _UserFailure(message)
    cause = ": ".join(part for part in (type(error).__name__, message.rstrip(".")) if part)
    return click.ClickException(
        f"Refine met an error that it does not know: {cause}. Run again with --debug for the traceback."
    )


@contextmanager
def _messages_on_stderr(level: int) -> Iterator[None]:
    """Shows what Refine and its operators log."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    loggers = [logging.getLogger(name) for name in ("refine", "stylegan_ops")]
    previous_levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, previous in zip(loggers, previous_levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(previous)
