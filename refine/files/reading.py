"""Errors of reading and listing as one sentence: the file, the system's reason, a remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from refine.errors import UserError

_REMEDIES = {
    errno.EACCES: "give yourself permission to read it",
    errno.EPERM: "give yourself permission to read it",
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "check the name",
    errno.ELOOP: "remove the links that lead to each other",
    errno.EISDIR: "give a file, not a folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the number of open files (ulimit -n)",
    errno.EIO: "copy it again, or check the disk",
    errno.ESTALE: "mount the network folder again",
}


def cannot_read(path: str | os.PathLike[str], error: OSError | MemoryError | UnicodeError) -> UserError:
    """The sentence for a file or folder that cannot be read, with the remedy that fits the cause."""
    if isinstance(error, MemoryError):
        return UserError(f"{os.fspath(path)} does not fit in memory: free some, or give a smaller file.")
    if isinstance(error, UnicodeError):
        return UserError(f"{os.fspath(path)} is not UTF-8 text ({error}): save it as UTF-8.")
    remedy = _REMEDIES.get(error.errno or 0, "copy it to a local disk")
    return UserError(f"Cannot read {os.fspath(path)} ({error.strerror or error}): {remedy}.")


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what the system raises while `path` is read or listed into a `UserError`.

    Raises:
        UserError: No permission, no such file, a broken disk, too little memory or undecodable text. The sentence names
            the file that the system names, else `path`.
    """
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, (str, os.PathLike)) else path
        raise cannot_read(named, error) from error
    except (MemoryError, UnicodeError) as error:
        raise cannot_read(path, error) from error
