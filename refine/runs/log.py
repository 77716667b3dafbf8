"""Copy of the log in a run's `log.txt`, so that whoever reads the folder later learns what the terminal said."""

from __future__ import annotations

import logging
from contextlib import suppress
from types import TracebackType

from refine.errors import UserError
from refine.files.addresses import without_secrets
from refine.runs.folder import RunFolder
from refine.runtime.logs import line_of

IN_LOG = {"in_log": True}  # `extra` of a record whose line is in `log.txt` already


class RunLog(logging.Handler):
    """Handler that writes to `log.txt`, as a context manager from before the folder exists to the end of the run.

    Args:
        logger: Logger to listen to.
        is_writer: Whether this process writes `log.txt`.
    """

    def __init__(self, logger: logging.Logger, is_writer: bool) -> None:
        super().__init__()
        self.logger, self.is_writer = logger, is_writer
        self._folder: RunFolder | None = None
        self._early: list[str] = []

    def use(self, folder: RunFolder) -> None:
        """Writes what has been logged so far, and from now on whatever is logged."""
        self._folder, early, self._early = folder, self._early, []
        for line in early:
            self._write(line)

    def end(self, error: Exception) -> None:
        """Writes the error that ends the run, which only the caller can show elsewhere."""
        if self.is_writer:
            self._write(f"Error: {error if isinstance(error, UserError) else f'{type(error).__name__}: {error}'}")

    def emit(self, record: logging.LogRecord) -> None:
        """Writes or keeps one record; debugging output is left out."""
        if record.levelno >= logging.INFO and not getattr(record, "in_log", False):
            self._write(line_of(record))

    def _write(self, line: str) -> None:
        line = " ".join(without_secrets(line).split())
        if self._folder is None:
            self._early.append(line)
        else:
            with suppress(UserError):  # a full disk ends the run where it saves
                self._folder.log(line)

    def __enter__(self) -> RunLog:
        if self.is_writer:
            self.logger.addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.logger.removeHandler(self)
