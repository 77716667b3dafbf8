"""Tensor storages: torch.save archives from before PyTorch 1.6, nested in a pickle as bytes.

Such an archive is five pickles in a row (a magic number, the protocol 1001, system information, the storage,
the list of keys) and then the raw data: an element count as int64 and the elements, little-endian. Here it is
read without `torch.load`: each of the five goes through the same scan as the outer pickle and an allow-list
of its own.
"""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch

from refine.pickles.errors import PickleError
from refine.pickles.scan import MAX_STORAGE_OPCODES, scan_pickle
from refine.pickles.source import FileBytes

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
HEAD_BYTES = 1 << 14  # within which the data of an archive begins; 400 are usual

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class StorageBlob:
    """Bytes that from `data_start` on are elements of `dtype`: those of one archive, or of a whole file of tensors."""

    archive: bytes | FileBytes
    data_start: int
    dtype: torch.dtype
    num_elements: int

    def view(self, shape: tuple[int, ...], stride: tuple[int, ...], offset: int) -> torch.Tensor:
        """A contiguous copy of a view, in memory of its own; the view has to lie within the data."""
        # Memory of PyTorch's, not NumPy's, which asks for huge pages: virtual machines provide these four times slower.
        copy = torch.empty(shape, dtype=self.dtype, device="cpu")  # wherever the caller makes tensors
        if copy.numel() == 0:
            return copy
        size = self.dtype.itemsize
        start = self.data_start + offset * size
        if stride == _strides(shape) and isinstance(self.archive, FileBytes):
            self.archive.read_into(start, copy.view(-1).view(torch.uint8).numpy().data)
            return copy
        last = sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        data = self.archive.read(start, (last + 1) * size) if isinstance(self.archive, FileBytes) else self.archive
        flat = np.frombuffer(data, f"<i{size}", last + 1, 0 if isinstance(self.archive, FileBytes) else start)
        view = np.lib.stride_tricks.as_strided(flat, shape, [step * size for step in stride], writeable=False)
        # NumPy has no bfloat16: integers of the same size are copied.
        copy.view(_INTEGERS[size]).numpy()[...] = view
        return copy

    def tensor(self) -> torch.Tensor:
        """The data as a flat tensor [num_elements] in memory of its own."""
        return self.view((self.num_elements,), (1,), 0)

    def with_data(self, flat: torch.Tensor) -> tuple[bytes, memoryview]:
        """The archive with other data: its head, byte for byte as it was, and the new data."""
        assert flat.numel() == self.num_elements and flat.dtype == self.dtype and flat.is_contiguous()
        data: Any = flat.reshape(-1).view(torch.uint8).numpy() if flat.numel() else b""
        head = self.archive.read(0, self.data_start) if isinstance(self.archive, FileBytes) else self.archive
        return head[: self.data_start], memoryview(data)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a C array, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class _ArchiveUnpickler(pickle.Unpickler):
    """Reads one of the five pickles: numbers, text and dicts, and the description of one storage."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGE_DTYPES:
            return name
        raise PickleError(f"has a tensor storage that names {module}.{name}; refused")

    def persistent_load(self, pid: Any) -> Any:
        return pid


def parse_storage(archive: bytes | FileBytes) -> StorageBlob:
    """Finds the data in an archive.

    Raises:
        PickleError: The bytes are not such an archive, or declared and actual size differ.
    """
    head = archive.read(0, min(len(archive), HEAD_BYTES)) if isinstance(archive, FileBytes) else archive
    file = io.BytesIO(head)
    magic, protocol, system, description, keys = (load_next(file, len(head)) for _ in range(5))
    if magic != MAGIC_NUMBER or protocol != PROTOCOL_VERSION:
        raise PickleError("has a tensor storage that is not a torch.save archive; it is damaged or forged")
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise PickleError("was written on a big-endian machine, which Refine does not read")
    if not (isinstance(description, tuple) and len(description) == 6 and description[0] == "storage"):
        raise PickleError("has a tensor storage of an unknown form; it is damaged or forged")
    _, kind, key, location, num_elements, view = description
    is_known = all(isinstance(text, str) for text in (kind, key, location)) and kind in STORAGE_DTYPES
    is_alone = view is None and type(keys) is list and len(keys) == 1 and isinstance(keys[0], str) and keys[0] == key
    if not (is_known and is_alone and type(num_elements) is int):
        raise PickleError("has a tensor storage of an unknown form; it is damaged or forged")
    dtype = STORAGE_DTYPES[kind]
    counted = int.from_bytes(file.read(8), "little", signed=True)
    data_start = file.tell()
    if counted != num_elements or num_elements * dtype.itemsize != len(archive) - data_start:
        raise PickleError(
            f"has a tensor storage that declares {num_elements} elements of {dtype} "
            f"and holds {len(archive) - data_start} bytes; it is damaged or forged"
        )
    return StorageBlob(archive, data_start, dtype, num_elements)


def load_next(file: BinaryIO, size: int, max_opcodes: int = MAX_STORAGE_OPCODES) -> Any:
    """Reads one of the small pickles of an archive; the file is left behind it.

    Args:
        file: Seekable, at the beginning of the pickle.
        size: Length of the file in bytes.
        max_opcodes: Most opcodes of the pickle.

    Raises:
        PickleError: The pickle is damaged or forged, or names a global other than a storage type.
    """
    start = file.tell()
    end = scan_pickle(file, size, kind="storage", max_opcodes=max_opcodes).end
    file.seek(start)
    part = io.BytesIO(file.read(end - start))
    value = _ArchiveUnpickler(part).load()
    if part.tell() != end - start:
        raise PickleError("has a tensor storage that reads differently in parts: forged; refused")
    return value


class _ArchivePickler(pickle.Pickler):
    """Writes the description of a storage: a persistent id, as `torch.save` does."""

    def __init__(self, file: BinaryIO, description: tuple[Any, ...]) -> None:
        super().__init__(file, protocol=2)
        self.description = description

    def persistent_id(self, obj: Any) -> Any:
        return self.description if obj is self else None


def archive_of(data: bytes, kind: str, num_elements: int) -> bytes:
    """An archive around raw data.

    Args:
        data: Elements, little-endian.
        kind: Key of `STORAGE_DTYPES`.
        num_elements: Number of elements.
    """
    file = io.BytesIO()
    system = {
        "protocol_version": PROTOCOL_VERSION,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    for value in (MAGIC_NUMBER, PROTOCOL_VERSION, system):
        pickle.dump(value, file, protocol=2)
    description = ("storage", getattr(torch, kind), "0", "cpu", num_elements, None)
    pickler = _ArchivePickler(file, description)
    pickler.dump(pickler)
    pickle.dump(["0"], file, protocol=2)
    file.write(num_elements.to_bytes(8, "little"))
    return file.getvalue() + data
