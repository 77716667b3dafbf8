"""Bytes of an open file, read when they are needed.

The storages of a network pickle are most of it. They stay in the file: opening a pickle of gigabytes takes the memory
of the networks that are made from it, and no more.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from refine.pickles.errors import PickleError

CHUNK_BYTES = 1 << 22
PART_BYTES = 1 << 20


class SourceFile:
    """An open file that must not change while it is in use; it may be renamed or removed.

    Args:
        path: File to open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("rb")
        self._lock = threading.Lock()
        self._part = memoryview(bytearray(PART_BYTES))
        self._state = self._now()

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._state[0]

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills a buffer of bytes.

        Args:
            offset: Position in the file.
            buffer: Bytes to fill.

        Raises:
            PickleError: The file has changed since it was opened.
        """
        with self._lock:  # snapshots are written in the background
            self._file.seek(offset)
            done = 0
            while done < len(buffer):
                # By way of memory that is at hand: the kernel is slow to write to pages that are new.
                part = self._part[: len(buffer) - done]
                count = self._file.readinto(part)  # type: ignore[attr-defined]
                if not count:
                    break
                buffer[done : done + count] = part[:count]
                done += count
        if done < len(buffer) or self._now() != self._state:
            raise PickleError(
                f"{self.path} has changed since it was opened: give it its content back, and start again from there"
            )

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Bytes at a position; see `read_into`."""
        data = bytearray(num_bytes)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def chunks(self, offset: int, num_bytes: int) -> Iterator[bytes]:
        """Bytes at a position, in parts; see `read_into`."""
        for start in range(offset, offset + num_bytes, CHUNK_BYTES):
            yield self.read(start, min(CHUNK_BYTES, offset + num_bytes - start))

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def __deepcopy__(self, memo: Any) -> SourceFile:
        return self


class FileBytes:
    """A string of bytes within a file.

    Args:
        source: The file.
        offset: Position of the first byte.
        num_bytes: Length.
    """

    def __init__(self, source: SourceFile, offset: int, num_bytes: int) -> None:
        self.source, self.offset, self.num_bytes = source, offset, num_bytes

    def __len__(self) -> int:
        return self.num_bytes

    def __bytes__(self) -> bytes:
        return self.source.read(self.offset, self.num_bytes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (bytes, FileBytes)) and len(self) == len(other) and bytes(self) == bytes(other)

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<{self.num_bytes} bytes at {self.offset} of {self.source.path}>"

    def read(self, start: int, num_bytes: int) -> bytes:
        """Bytes from a position on."""
        return self.source.read(self.offset + start, num_bytes)

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fills a buffer with the bytes from a position on."""
        self.source.read_into(self.offset + start, buffer)

    def chunks(self) -> Iterator[bytes]:
        """All bytes, in parts."""
        return self.source.chunks(self.offset, self.num_bytes)
