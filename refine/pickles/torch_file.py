"""Files of `torch.save`, as tuning and editing tools write generators: the same network, packed in another way.

A file of PyTorch 1.6 or later is a ZIP archive with the object in `<name>/data.pkl`, where tensors name their memory by
persistent ids, and the memory itself in `<name>/data/<key>`. An older one is five pickles in a row (a magic number, the
protocol 1001, system information, the object, the list of keys) and then the memory of each key. Both become the
records that NVIDIA's own pickles become: each storage is wrapped into an archive of its own. Of a state dict, which can
be large and is never written back, the memory stays in the file until a tensor is read.

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
from refine.pickles.source import FileBytes, SourceFile
from refine.pickles.state_dict import explain_names, holds_unet, names_in
from refine.pickles.storage import (
    MAGIC_NUMBER,
    PROTOCOL_VERSION,
    STORAGE_DTYPES,
    StorageBlob,
    archive_of,
    load_next,
    parse_storage,
)
from refine.pickles.tensor_records import StorageRecord
from refine.pickles.unpickler import InertUnpickler

MAX_MEMBERS = 200_000
_PERSISTENT = ("torch_utils.persistence", "_reconstruct_persistent_obj")
_STORAGES = {("torch", name) for name in STORAGE_DTYPES}
_TENSORS_ONLY = _STORAGES | {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2's names, which protocol 2 writes


class TorchFile(NamedTuple):
    """Content of a file.

    Attributes:
        value: The object as records.
        globals: Names that its pickle uses.
        is_state_dict: True for tensors by name without a network around them.
    """

    value: Any
    globals: tuple[tuple[str, str], ...]
    is_state_dict: bool = False


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
        if found.is_state_dict:
            with path.open("rb") as whole:
                pending.locate(path, lambda key: _place(whole, size, members.get(f"{prefix}data/{key}")))
            return found

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
    places: dict[str, _Place] = {}
    for key in keys:
        num_elements = int.from_bytes(file.read(8), "little", signed=True)
        if num_elements != pending.num_elements(key):
            raise DamagedFileError("declares two sizes for one tensor: download or copy it again")
        if pending.num_bytes(key) > size - file.tell():
            raise DamagedFileError("is cut off in the middle of a tensor: download or copy it again")
        places[key] = _Place(file.tell(), pending.num_bytes(key))
        if found.is_state_dict:
            file.seek(pending.num_bytes(key), io.SEEK_CUR)
        else:
            parts[key] = file.read(pending.num_bytes(key))
    if file.tell() != size:
        raise PickleError(f"has {size - file.tell()} bytes after its last tensor: something was added; refused")
    if found.is_state_dict:
        pending.locate(Path(file.name), places.__getitem__)
    else:
        pending.fill(lambda key, num_bytes: parts.pop(key))
    return found


class _Place(NamedTuple):
    """Place of a storage's data in a file, in bytes."""

    start: int
    length: int


def _place(file: BinaryIO, size: int, member: zipfile.ZipInfo | None) -> _Place:
    """Place of a member's data: behind its local header, whose length only the header tells."""
    if member is None:
        raise DamagedFileError("has no data for one of its tensors: download or copy it again")
    if member.flag_bits & 1:
        raise PickleError("has encrypted members, which torch.save does not write; refused")
    file.seek(member.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise DamagedFileError("is a damaged ZIP archive: download or copy it again")
    name_length, extra_length = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    if file.read(name_length) != member.filename.encode("utf-8"):
        raise PickleError("has a member under two names: forged; refused")
    start = member.header_offset + 30 + name_length + extra_length
    if start + member.file_size > size:
        raise DamagedFileError("is cut off in the middle of a tensor: download or copy it again")
    return _Place(start, member.file_size)


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

    def locate(self, path: Path, place: Callable[[str], _Place]) -> None:
        """Tells every record where its data lie.

        Args:
            path: The file.
            place: Finds the data of a storage by its key.
        """
        source = SourceFile(path)
        whole = FileBytes(source, 0, source.size)
        for key, record in self.records.items():
            kind, num_elements = self._described[key]
            start, length = place(key)
            if length != self.num_bytes(key):
                raise DamagedFileError(
                    f"has {length} bytes for a tensor of {self.num_bytes(key)}; download or copy it again"
                )
            record.blob = StorageBlob(whole, start, STORAGE_DTYPES[kind], num_elements)


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
    file.seek(start)
    data = file.read(scan.end - start)
    is_state_dict = _PERSISTENT not in scan.globals
    if is_state_dict and not set(scan.globals) <= _TENSORS_ONLY:
        raise PickleError(explain_checkpoint(data[:HEAD_BYTES]))
    part = io.BytesIO(data)
    unpickler = _ObjectUnpickler(part, trust)
    value = unpickler.load()
    if is_state_dict and not holds_unet(value):
        raise PickleError(explain_names(names_in(value)) or explain_checkpoint(data[:HEAD_BYTES]))
    if part.tell() != scan.end - start:
        raise PickleError("reads differently in parts: forged; refused")
    known = {*_STORAGES, ("_codecs", "encode")}
    names = [(_RENAMED.get(module, module), name) for module, name in scan.globals if (module, name) not in known]
    return unpickler.pending, TorchFile(value, tuple(names), is_state_dict)
