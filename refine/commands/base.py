"""The click command that all commands of Refine are: errors as one sentence, exit codes, `--debug`, messages on stderr.

Exit codes: 0 done, 1 an error that Refine does not know, 2 something the user can mend, 130 interrupted (Ctrl-C).
"""

from __future__ import annotations

import io
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from refine.errors import OptionError, UserError
from refine.files.addresses import without_secrets
from refine.runtime.logs import RankFilter, line_of, rank_from_environment

MAX_CHARACTERS = 900
# An error that all processes meet is told by rank 0: the launcher ends the others while they wait.
LATER_SECONDS = 3.0


class Command(click.Command):
    """A click command that never shows a traceback unless asked: `@click.command(cls=Command)`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
        kwargs["context_settings"] = settings | (kwargs.get("context_settings") or {})
        super().__init__(*args, **kwargs)
        self.params.append(click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."))

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Reads the command line."""
        try:
            return super().make_context(*args, **kwargs)
        except click.ClickException:
            _let_rank0_speak()
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command's function; exceptions become sentences and exit codes."""
        debug = ctx.params.pop("debug")
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error
        try:
            with _messages_on_stderr(logging.DEBUG if debug else logging.INFO):
                return super().invoke(ctx)
        # click's own, and a closed pipe (`| head`), which click ends quietly.
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except click.ClickException:
            _let_rank0_speak()
            raise
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)
        except Exception as error:
            _let_rank0_speak()
            if debug:
                traceback.print_exc()
            raise failure(error) from error


class UserFailure(click.ClickException):
    """A sentence for the user, with exit code 2."""

    exit_code = 2


def printable(text: str) -> str:
    """One line of bounded length that cannot move a terminal's cursor: names from foreign files end up in messages.

    Addresses in it lose their user names, passwords and tokens.
    """
    text = without_secrets(text)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:MAX_CHARACTERS])
    return shown if len(text) <= MAX_CHARACTERS else shown + "..."


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(line_of(record))


def is_rank0() -> bool:
    """True on rank 0 of the processes that `torchrun` started, which writes to stdout and logs."""
    return rank_from_environment() == 0


def _let_rank0_speak() -> None:
    """Waits on all ranks but 0, until the launcher has ended this process if rank 0 failed, too."""
    if not is_rank0():
        with suppress(KeyboardInterrupt):
            time.sleep(LATER_SECONDS)


def failure(error: Exception) -> click.ClickException:
    """The sentence and exit code for an exception."""
    text = error.as_typed() if isinstance(error, OptionError) else str(error)
    message = printable(" ".join(text.split()))
    if isinstance(error, UserError):
        return UserFailure(message)
    if isinstance(error, OSError) and error.strerror:
        names = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return UserFailure(printable(f"{names or 'A file or device'} cannot be read or written: {error.strerror}."))
    if isinstance(error, MemoryError):
        reason = f" ({message})" if message else ""
        return UserFailure(f"Out of memory{reason}: close other programs, or give smaller files or numbers.")
    cause = ": ".join(part for part in (type(error).__name__, message.rstrip(".")) if part)
    return click.ClickException(f"Unexpected error: {cause}. Run again with --debug for the traceback.")


@contextmanager
def _messages_on_stderr(level: int) -> Iterator[None]:
    """Shows what Refine and its operators log, on rank 0 only."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    handler.addFilter(RankFilter(rank_from_environment))
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
