"""What the reader and the writer of pickles raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refine.errors import UserError


class PickleError(UserError):
    """A file is not a network pickle, is damaged, or asks for something that Refine does not do."""


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Puts the name of the file in front of an error that does not know it."""
    try:
        yield
    except UserError as error:
        raise PickleError(f"{path}: {error}") from error
