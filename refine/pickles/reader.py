"""Reader of network pickles: from a file to records, executing nothing.

Three gates: the kind of file (`diagnose`), the scan of its opcodes (`scan`), and `pickle.Unpickler` with an allow-list
of globals, each of which becomes an inert class (`unpickler`, `records`).
"""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from refine.pickles import diagnose, records, torch_file
from refine.pickles.errors import DamagedFileError, PickleError
from refine.pickles.layout import Layout, arrange
from refine.pickles.records import Inert
from refine.pickles.scan import PickleScan, names_dill, scan_pickle
from refine.pickles.source import SourceFile
from refine.pickles.tree import walk
from refine.pickles.unpickler import ArchiveUnpickler, allowed_record

log = logging.getLogger("refine")

FRAME_BYTES = 9  # opcode and length
TORCH_WRITE_PROTOCOL = 4  # torch.save writes protocol 2, which is not enough for a network pickle


@dataclass(frozen=True)
class NetworkPickle(Mapping[str, Any]):
    """A network pickle in memory: a read-only mapping of its entries to records.

    Attributes:
        root: Networks and other entries by name, as inert values.
        protocol: Pickle protocol of the file, or of the one to write if it is a file of `torch.save`.
        path: Path of the file.
        trusted: True if the caller allowed the embedded source to be run.
        foreign_globals: Names in use that are not on the allow-list; empty unless the pickle is trusted, or written by
            dill.
        layout: Arrangement of the networks in the file; None means that `root` is all of it.
        kind: Kind of the file.
        verbatim: The open file, if it is written back by copying its bytes: dill's records can only be copied, and
            R3GAN's files are large; None for all others.
    """

    root: dict[str, Any]
    protocol: int
    path: Path
    trusted: bool = False
    foreign_globals: tuple[str, ...] = ()
    layout: Layout | None = field(default=None, repr=False)
    kind: diagnose.Kind = "pickle"
    verbatim: SourceFile | None = field(default=None, repr=False)

    def __getitem__(self, key: str) -> Any:
        return self.root[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.root)

    def __len__(self) -> int:
        return len(self.root)

    def persistent_objects(self) -> Iterator[records.PersistentObject]:
        """Every persistent object in the pickle, each once."""
        return (value for value in walk(self.root) if isinstance(value, records.PersistentObject))

    @property
    def is_verbatim(self) -> bool:
        """True if the pickle is as it was read from a file whose bytes are to be copied."""
        return self.verbatim is not None and self.layout is not None and self.root is self.layout.root

    @property
    def description(self) -> str:
        """The kind and arrangement of the file in words, if it is not an ordinary snapshot; empty if it is."""
        is_dill = any(name.startswith("dill._dill.") for name in self.foreign_globals)
        arrangement = self.layout.description if self.layout else ""
        saved = "a file of torch.save" if self.kind != "pickle" else "a file of dill" if is_dill else ""
        return " with ".join(part for part in (saved, arrangement) if part)


class _Parsed(NamedTuple):
    value: Any
    globals: tuple[tuple[str, str], ...]
    protocol: int
    verbatim: SourceFile | None = None


def load(path: str | Path, *, trust: bool = False) -> NetworkPickle:
    """Reads a network pickle, or a file of `torch.save` with a network. Nothing inside it is imported or executed.

    Args:
        path: A local file.
        trust: Permission to keep globals that are not on the allow-list, as inert records, and for
            `networks.rebuild` to run embedded source later.

    Raises:
        PickleError: The file is of another kind, is damaged, or asks for something that no network pickle needs.
    """
    path = Path(path)
    size = 0
    kind: diagnose.Kind | None = None
    try:
        size = path.stat().st_size
        kind = diagnose.kind_of(path, size)
        parsed = _parse(path, size, kind, trust)
        for value in walk(parsed.value):
            if isinstance(value, Inert):
                value.check()
        layout = arrange(parsed.value)
    except OSError as error:
        raise PickleError(f"{path} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise PickleError(f"{path} does not fit into memory: close other programs, or use a larger machine") from None
    except PickleError as error:
        raise type(error)(f"{path} {_cause(path, size, kind, error)}") from None
    except Exception as error:  # damaged bytes can fail in any of the unpickler's ways
        reason = f"{type(error).__name__}: {error!s:.200}"
        failure = DamagedFileError(f"is damaged or not a network pickle ({reason}); download or copy it again")
        raise DamagedFileError(f"{path} {_cause(path, size, kind, failure)}") from error
    foreign = tuple(f"{module}.{name}" for module, name in parsed.globals if allowed_record(module, name) is None)
    opened = NetworkPickle(layout.root, parsed.protocol, path, trust, foreign, layout, kind, parsed.verbatim)
    if opened.description:
        log.info("%s is %s", path, opened.description)
    return opened


def damage(path: str | Path) -> str | None:
    """The sign by which a file that should hold a network shows that it is incomplete or another file altogether.

    Only opcodes and directories are looked at, no tensor is read. A file that is whole but refused for other reasons
    counts as whole.

    Args:
        path: A local file, such as a finished download.

    Returns:
        The end of a sentence that begins with the file; None if the file is whole.

    Raises:
        OSError: The file cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    try:
        if diagnose.kind_of(path, size) == "pickle":
            with path.open("rb") as file:
                _scan(file, size)
    except DamagedFileError as error:
        return _cause(path, size, "pickle", error)
    except PickleError:
        return None
    return None


def _parse(path: Path, size: int, kind: diagnose.Kind, trust: bool) -> _Parsed:
    if kind == "torch-zip":
        return _of_torch(torch_file.read_zip(path, size, trust))
    with path.open("rb") as file:
        if kind == "torch-legacy":
            return _of_torch(torch_file.read_legacy(file, size, trust))
        scan = _scan(file, size)
        diagnose.explain_globals(scan.globals)
        rest = _without_archives(file, scan)
    source = SourceFile(path)
    unpickler = ArchiveUnpickler(rest, trust, source, scan.archives, dill=names_dill(scan.globals))
    value = unpickler.load()
    if rest.read(1) or source.size != size:
        raise PickleError("reads differently in parts: forged; refused")
    copied = (records.Opaque, records.OwnModule)
    is_verbatim = scan.discards or any(issubclass(kind, copied) for kind in unpickler.types.values())
    return _Parsed(value, scan.globals, scan.protocol, source if is_verbatim else None)


def _without_archives(file: BinaryIO, scan: PickleScan) -> io.BytesIO:
    """The pickle with the number of each storage's archive, as a persistent id, in its place.

    Frames are left out, because what lies in them gets shorter; they mean nothing to a reader.
    """
    parts, position = [], 0
    cuts = [(archive.begin, archive.end, _numbered(i)) for i, archive in enumerate(scan.archives)]
    cuts += [(frame, frame + FRAME_BYTES, b"") for frame in scan.frames]
    for begin, end, replacement in sorted(cuts):
        file.seek(position)
        parts += [file.read(begin - position), replacement]
        position = end
    file.seek(position)
    return io.BytesIO(b"".join([*parts, file.read()]))


def _numbered(index: int) -> bytes:
    return pickle.BININT + index.to_bytes(4, "little") + pickle.BINPERSID


def _of_torch(file: torch_file.TorchFile) -> _Parsed:
    return _Parsed(file.value, file.globals, TORCH_WRITE_PROTOCOL)


def _scan(file: BinaryIO, size: int) -> PickleScan:
    scan = scan_pickle(file, size)
    if scan.end != size:
        raise DamagedFileError(
            f"has {size - scan.end} bytes after the end of its pickle: something was added; download it again"
        )
    return scan


def _cause(path: Path, size: int, kind: diagnose.Kind | None, error: PickleError) -> str:
    """The sentence that names the cause of a failure, where the file shows one."""
    if kind == "pickle":
        try:
            diagnose.explain_failure(path, size)
        except PickleError as cause:
            return str(cause)
        except OSError:
            pass
    return str(error)
