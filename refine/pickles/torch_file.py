"""Files of `torch.save`, as tuning and editing tools write generators: the same network, packed in another way.

A file of PyTorch 1.6 or later is a ZIP archive with the object in `<name>/data.pkl`, where tensors name their memory by
persistent ids, and the memory itself in `<name>/data/<key>`. An older one is five pickles in a row (a magic number, the
protocol 1001, system information, the object, the list of keys) and then the memory of each key. Both become the
records that NVIDIA's own pickles become: each storage is wrapped into an archive of its own.

Source: the formats as `torch.serialization` reads and writes them.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from refine.pickles.diagnose import HEAD_BYTES, explain_checkpoint, zip_errors
from refine.pickles.errors import DamagedFileError, PickleError
from refine.pickles.records import InertType
from refine.pickles.scan import scan_pickle
from refine.pickles.storage import (
    MAGIC_NUMBER,
    PROTOCOL_VERSION,
    STORAGE_DTYPES,
    archive_of,
    load_next,
    parse_storage,
)
from refine.pickles.tensor_records import StorageRecord
from refine.pickles.unpickler import InertUnpickler

MAX_MEMBERS = 200_000
_PERSISTENT = ("torch_utils.persistence", "_reconstruct_persistent_obj")
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2's names, which protocol 2 writes


class TorchFile(NamedTuple):
    """Content of a file.

    Attributes:
        value: The object as records.
        globals: Names that its pickle uses.
    """

    value: Any
    globals: tuple[tuple[str, str], ...]


def read_zip(path: Path, size: int, trust: bool) -> TorchFile:
    """Reads a ZIP archive of `torch.save`, executing nothing.

    Args:
        path: File to read.
        size: Length of the file in bytes.
        trust: Permission to keep globals that are not on the allow-list, as records.

    Raises:
        PickleError: The file is damaged or forged, or has no network with its source.
    """
    with zip_errors(), zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()) or len(members) > MAX_MEMBERS:
            raise PickleError("has members of one name, or more members than a network has tensors; refused")
        if any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size for m in members.values()):
            raise PickleError("has compressed members, which torch.save does not write; refused")
        if sum(member.file_size for member in members.values()) > size:
            raise PickleError("has members that overlap: forged; refused")
        (name,) = [n for n in members if n.endswith("/data.pkl") and n.count("/") == 1] or [""]
        if not name:
            raise PickleError("has no data.pkl where torch.save puts it; refused")
        prefix = name.removesuffix("data.pkl")
        if f"{prefix}byteorder" in members and archive.read(f"{prefix}byteorder") != b"little":
            raise PickleError("was written on a big-endian machine, which Refine does not read")
        data = archive.read(name)
        file = io.BytesIO(data)
        pending, found = _read_object(file, len(data), trust)
        if file.tell() != len(data):
            raise PickleError("has bytes after the end of its object: something was added; refused")

        def memory(key: str, num_bytes: int) -> bytes:
            if f"{prefix}data/{key}" not in members:
                raise DamagedFileError("has no data for one of its tensors: download or copy it again")
            return archive.read(f"{prefix}data/{key}")

        pending.fill(memory)
        return found


def read_legacy(file: BinaryIO, size: int, trust: bool) -> TorchFile:
    """Reads a file of `torch.save` before PyTorch 1.6, executing nothing.

    Args:
        file: File, open at its beginning.
        size: Length of the file in bytes.
        trust: Permission to keep globals that are not on the allow-list, as records.

    Raises:
        PickleError: The file is damaged or forged, or has no network with its source.
    """
    magic, protocol, system = (load_next(file, size) for _ in range(3))
    if magic != MAGIC_NUMBER or protocol != PROTOCOL_VERSION:
        raise PickleError("is not a torch.save archive; it is damaged or forged")
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise PickleError("was written on a big-endian machine, which Refine does not read")
    pending, found = _read_object(file, size, trust)
    keys = load_next(file, size, max_opcodes=10 * MAX_MEMBERS)
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys)):
        raise PickleError("has a list of storages of an unknown form; it is damaged or forged")
    if set(keys) != set(pending.records):
        raise PickleError("lists other storages than its tensors use; it is damaged or forged")
    parts: dict[str, bytes] = {}
    for key in keys:
        num_elements = int.from_bytes(file.read(8), "little", signed=True)
        if num_elements != pending.num_elements(key):
            raise DamagedFileError("declares two sizes for one tensor: download or copy it again")
        if pending.num_bytes(key) > size - file.tell():
            raise DamagedFileError("is cut off in the middle of a tensor: download or copy it again")
        parts[key] = file.read(pending.num_bytes(key))
    if file.tell() != size:
        raise PickleError(f"has {size - file.tell()} bytes after its last tensor: something was added; refused")
    pending.fill(lambda key, num_bytes: parts.pop(key))
    return found


class _Pending:
    """Storages that an object refers to, by key, until their memory is read."""

    def __init__(self) -> None:
        self.records: dict[str, StorageRecord] = {}
        self._described: dict[str, tuple[str, int]] = {}

    def record(self, pid: Any, storage_type: Any) -> StorageRecord:
        """The record of the storage that a persistent id names."""
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and pid[5:] in ((), (None,))):
            raise PickleError("has a tensor storage of an unknown form; it is damaged or forged")
        _, kind, key, _, num_elements = pid[:5]
        if not (isinstance(kind, str) and kind in STORAGE_DTYPES and isinstance(key, str) and key.isalnum()):
            raise PickleError("has a tensor storage of an unknown form; it is damaged or forged")
        if type(num_elements) is not int or num_elements < 0:
            raise PickleError("has a tensor storage of an impossible size; it is damaged or forged")
        if self._described.setdefault(key, (kind, num_elements)) != (kind, num_elements):
            raise PickleError("describes one tensor storage in two ways; it is damaged or forged")
        if key not in self.records:
            self.records[key] = storage_type.pending()
        return self.records[key]

    def num_elements(self, key: str) -> int:
        """Number of elements of a storage."""
        return self._described[key][1]

    def num_bytes(self, key: str) -> int:
        """Size of a storage."""
        kind, num_elements = self._described[key]
        return num_elements * STORAGE_DTYPES[kind].itemsize

    def fill(self, memory: Callable[[str, int], bytes]) -> None:
        """Gives every record its archive.

        Args:
            memory: Reads the bytes of a storage, by key and expected number of bytes.
        """
        for key, record in self.records.items():
            kind, num_elements = self._described[key]
            data = memory(key, self.num_bytes(key))
            if len(data) != self.num_bytes(key):
                raise DamagedFileError(
                    f"has {len(data)} bytes for a tensor of {self.num_bytes(key)}; download or copy it again"
                )
            archive = archive_of(data, kind, num_elements)
            record.args = (archive,)
            record.blob = parse_storage(archive)


class _ObjectUnpickler(InertUnpickler):
    """Reads the object's pickle: protocol 2, with tensors' memory elsewhere."""

    def __init__(self, file: Any, trust: bool) -> None:
        super().__init__(file, trust)
        self.pending = _Pending()

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGE_DTYPES:
            return name
        if (module, name) == ("_codecs", "encode"):  # protocol 2 has no opcode for bytes
            return _to_bytes
        return super().find_class(_RENAMED.get(module, module), name)

    def persistent_load(self, pid: Any) -> Any:
        # Before PyTorch 1.6, the class of a module comes with its source, for a warning where it has changed.
        if isinstance(pid, tuple) and len(pid) in (2, 4) and pid[0] == "module" and isinstance(pid[1], InertType):
            return pid[1]
        return self.pending.record(pid, self.find_class("torch.storage", "_load_from_bytes"))


def _to_bytes(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise PickleError("encodes text in a way that torch.save does not; refused")
    return text.encode("latin1")


def _read_object(file: BinaryIO, size: int, trust: bool) -> tuple[_Pending, TorchFile]:
    start = file.tell()
    scan = scan_pickle(file, size, kind="torch")
    if _PERSISTENT not in scan.globals:
        file.seek(start)
        raise PickleError(explain_checkpoint(file.read(min(HEAD_BYTES, scan.end - start))))
    file.seek(start)
    part = io.BytesIO(file.read(scan.end - start))
    unpickler = _ObjectUnpickler(part, trust)
    value = unpickler.load()
    if part.tell() != scan.end - start:
        raise PickleError("reads differently in parts: forged; refused")
    known = {*(("torch", name) for name in STORAGE_DTYPES), ("_codecs", "encode")}
    names = [(_RENAMED.get(module, module), name) for module, name in scan.globals if (module, name) not in known]
    return unpickler.pending, TorchFile(value, tuple(names))
