"""Errors of reading and writing pickles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refine.errors import UserError


class PickleError(UserError):
    """A file is not a network pickle, is damaged, or asks for something that Refine does not do."""


class DamagedFileError(PickleError):
    """Bytes are missing or changed, or it is another file altogether: another download or copy may be good."""


class NonFiniteError(PickleError):
    """A network has weights that are NaN or infinite."""


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Puts the name of the file in front of an error that does not know it.

    Args:
        path: The file.

    Raises:
        PickleError: The block failed with a UserError, because the file cannot be read, or for want of memory.
    """
    try:
        yield
    except (NonFiniteError, DamagedFileError) as error:
        raise type(error)(f"{path}: {error}") from error
    except UserError as error:
        raise PickleError(f"{path}: {error}") from error
    except OSError as error:
        raise PickleError(f"{path} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise PickleError(f"{path} does not fit into memory: close other programs, or use a larger machine") from error
