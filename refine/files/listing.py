"""Files of a data set: a folder or ZIP, the images in it, and what is left out of them.

Everything that reads a data set asks here, so that all agree on which files it consists of.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from refine.errors import UserError
from refine.files.digest import file_sha256, text_sha256
from refine.files.reading import cannot_read, reading

LABELS_FILE = "dataset.json"
SYSTEM_FOLDERS = {  # folders that systems put beside or into a user's: what they are
    "__MACOSX": "resource forks of macOS",
    "$RECYCLE.BIN": "Windows' recycle bin",
    "System Volume Information": "Windows' system files",
    "@eaDir": "thumbnails of a Synology disk",
    "lost+found": "recovered files",
}


class Listing(NamedTuple):
    """Names of a data set's files, each once and sorted, as they are stored.

    Attributes:
        images: Files with the suffix of an image format.
        labels: Every `dataset.json`, wherever it lies.
        notes: Files that were left out, a sentence each.
        problems: Files that cannot be listed, a sentence each.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


class DatasetFiles(ABC):
    """A folder or ZIP file, open for reading; `open_files` makes one.

    Attributes:
        path: The folder or ZIP file.
        listing: The names in it.
    """

    path: Path
    listing: Listing

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            UserError: The file cannot be read, or is damaged.
        """

    @abstractmethod
    def fingerprint(self) -> str | None:
        """A digest that changes when any file's content does, found without reading the content; None if impossible."""

    @abstractmethod
    def sha256(self) -> str:
        """A digest of the content: of the ZIP file, or of names and contents of a folder's files.

        Raises:
            UserError: A file cannot be read.
        """


def open_files(path: Path) -> DatasetFiles:
    """Opens and lists a folder or ZIP file.

    Raises:
        UserError: There is neither, or it cannot be read.
    """
    with reading(path):
        if path.is_dir():
            return _Folder(path)
        if not path.exists():
            raise UserError(f"There is no data set {path}: give a StyleGAN data set, a ZIP or folder of PNGs.")
        return _Zip(path)


class _Folder(DatasetFiles):
    def __init__(self, path: Path) -> None:
        self.path = path
        self._problems: list[str] = []
        self._num_loops = 0
        names = list(self._walk("", frozenset({os.path.realpath(path)})))
        notes = []
        if self._num_loops:
            notes.append(f"Left out of {path}: {counted(self._num_loops, 'link')} to a folder that holds the link.")
        self.listing = _list(path, names, notes, self._problems)

    def _walk(self, folder: str, above: frozenset[str]) -> Iterator[str]:
        """Files below a folder, by names relative to the data set; links are followed unless they lead upwards."""
        try:
            entries = sorted(os.scandir(self.path / folder), key=lambda entry: entry.name)
        except OSError as error:
            self._problems.append(str(cannot_read(self.path / folder, error)))
            return
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if entry.is_dir():
                    target = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    if target in above:
                        self._num_loops += 1
                    elif _left_out(name) is None:
                        yield from self._walk(name, above | {os.path.realpath(target)})
                    else:
                        yield from self._walk_left_out(name)
                elif entry.is_file():
                    yield name
                elif _is_wanted(name) and _left_out(name) is None:
                    what = "is a link to a file that does not exist" if entry.is_symlink() else "is not a regular file"
                    self._problems.append(f"{self.path}/{name} {what}: replace or remove it.")
            except OSError as error:
                self._problems.append(str(cannot_read(f"{self.path}/{name}", error)))

    def _walk_left_out(self, folder: str) -> Iterator[str]:
        """Files below a folder that is left out, to be counted; what cannot be read there does not matter."""
        for parent, _, names in os.walk(self.path / folder):
            yield from (Path(parent, name).relative_to(self.path).as_posix() for name in names)

    def read(self, name: str) -> bytes:
        with reading(self.path / name):
            return (self.path / name).read_bytes()

    def fingerprint(self) -> str | None:
        if os.name == "nt":  # where the time of a change cannot be had
            return None
        digest = hashlib.sha256(os.fsencode(os.path.realpath(self.path)))
        for name in self._all():
            with reading(self.path / name):
                s = (self.path / name).stat()
            # A user can set st_mtime, but not st_ctime, which tells when content or name last changed.
            facts = (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
            digest.update(os.fsencode(f"\0{name}\0{facts}"))
        return digest.hexdigest()

    def sha256(self) -> str:
        parts = []
        for name in self._all():
            with reading(self.path / name):
                parts.append(f"{name}\0{file_sha256(self.path / name)}\0")
        return text_sha256("".join(parts))

    def _all(self) -> list[str]:
        return [*self.listing.images, *(name for name in self.listing.labels if name == LABELS_FILE)]


class _Zip(DatasetFiles):
    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = self._open()
        times = Counter(info.filename for info in self._zip.infolist() if not info.is_dir())
        repeated = sum(count > 1 and _is_wanted(name) for name, count in times.items())
        notes = []
        if repeated:
            notes.append(f"{path} holds {counted(repeated, 'name')} more than once: the last file of each is read.")
        self.listing = _list(path, list(times), notes, [])

    def __getstate__(self) -> dict[str, Any]:
        """State for another process, which opens the file itself."""
        return self.__dict__ | {"_zip": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._zip = self._open()

    def _open(self) -> zipfile.ZipFile:
        with reading(self.path):
            try:
                return zipfile.ZipFile(self.path)
            except (OSError, MemoryError):
                raise
            except Exception as error:  # BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error
                raise UserError(
                    f"{self.path} is not a ZIP file, or is damaged ({error}): give a StyleGAN data set."
                ) from error

    def read(self, name: str) -> bytes:
        try:
            with reading(f"{self.path}/{name}"):
                return self._zip.read(name)
        except UserError:
            raise
        except Exception as error:  # BadZipFile, zlib.error, encryption, unknown compression
            raise UserError(f"{self.path}/{name} is damaged ({one_line(error)}): replace or remove it.") from error

    def fingerprint(self) -> str | None:
        digest = hashlib.sha256()
        for info in self._zip.infolist():  # the central directory: with CRC-32, so of the content
            facts = (info.file_size, info.compress_size, info.CRC, info.header_offset)
            digest.update(f"{info.filename}\0{facts}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def sha256(self) -> str:
        with reading(self.path):
            return file_sha256(self.path)


def _list(path: Path, names: list[str], notes: list[str], problems: list[str]) -> Listing:
    Image.init()
    wanted = [name for name in names if _is_wanted(name)]
    kinds: dict[str, list[str]] = {}
    for name in wanted:
        if reason := _left_out(name):
            kinds.setdefault(reason, []).append(name)
    for reason, found in sorted(kinds.items()):
        notes.append(f"Left out of {path}: {counted(len(found), 'file')} ({reason}), such as {min(found)}.")
    kept = sorted(name for name in wanted if _left_out(name) is None)
    labels = tuple(name for name in kept if _base(name) == LABELS_FILE)
    images = tuple(name for name in kept if _base(name) != LABELS_FILE)
    return Listing(images, labels, tuple(notes), tuple(problems))


def with_slashes(name: str) -> str:
    """A name as `dataset.json` spells it: some tools on Windows write backslashes into ZIP files."""
    return name.replace("\\", "/")


def _base(name: str) -> str:
    return with_slashes(name).rsplit("/", 1)[-1]


def _is_wanted(name: str) -> bool:
    Image.init()
    base = _base(name)
    return base == LABELS_FILE or PurePosixPath(base).suffix.lower() in Image.EXTENSION


def _left_out(name: str) -> str | None:
    """Reason to leave out a file or folder that is not the user's; None to keep it."""
    for part in with_slashes(name).split("/"):
        if part in SYSTEM_FOLDERS:
            return SYSTEM_FOLDERS[part]
        if part.startswith("._"):
            return SYSTEM_FOLDERS["__MACOSX"]
        if part.startswith(".") and part not in (".", ".."):
            return "hidden files and folders"
    return None


def counted(count: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its class."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
