"""Files that are either complete or not there at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from refine.errors import UserError

_OTHER_FOLDER = "choose a folder that you may write to"
_REMEDIES = {
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "free some space or choose another disk",
    errno.EFBIG: "choose a disk that holds files of this size",
    errno.ENOENT: "create that folder first",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def cannot_write(path: str | os.PathLike[str], error: OSError) -> UserError:
    """The sentence for a file or folder that could not be written, with the remedy that fits the cause.

    Args:
        path: File or folder.
        error: Failure.
    """
    remedy = _REMEDIES.get(error.errno or 0, _OTHER_FOLDER)
    if error.errno == errno.ENOENT and Path(path).absolute().parent.is_dir():  # such as /proc
        remedy = _OTHER_FOLDER
    return UserError(f"Cannot write {os.fspath(path)} ({error.strerror or error}): {remedy}.")


def check_folder(folder: Path, path: str | os.PathLike[str]) -> None:
    """Writes a nameless file and removes it, because only trying tells whether one may write.

    Args:
        folder: Folder that exists.
        path: File or folder to be written there, for the message.

    Raises:
        UserError: The folder cannot be written to.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error


def _target(path: str | os.PathLike[str]) -> Path:
    """The file to replace.

    Raises:
        UserError: It is not a regular file, or its name is impossible.
    """
    name = os.fspath(path)
    try:
        os.fsencode(name)
        target = Path(os.path.realpath(name))
        is_special = target.exists() and not target.is_file()
    except OSError as error:
        raise cannot_write(path, error) from error
    except ValueError:
        is_possible = False
    else:
        is_possible = "\0" not in name
    if not is_possible:
        raise UserError(f"Cannot write {name!a}: file names here cannot have all of its characters; choose another.")
    # os.replace would turn a device such as /dev/null into a regular file.
    if is_special:
        raise UserError(f"Cannot write {name} because it is not a regular file: choose another name.")
    return target


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens `path` for writing such that it appears complete or keeps what it held.

    The bytes go to a temporary file in the same folder, are flushed to the disk and take the name `path` when the
    `with` block ends without an exception; after an exception of any kind the temporary file is removed.
    A symbolic link is followed, so that the file it points to is replaced.

    Args:
        path: File to write.

    Raises:
        UserError: `path` cannot be written (folder missing, no permission, disk full, not a regular file, impossible
            name).
    """
    target = _target(path)
    temporary = target.parent / f".refine-{uuid4().hex}.tmp"
    try:
        # Not `tempfile`: its files are readable by their owner only, and would stay so.
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        # Writing itself names no file; an error that names another one is not about `path`.
        if error.filename not in (None, str(temporary)):
            raise
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
