"""Reader of files that Weights & Biases wrote offline: a log of blocks (LevelDB's format) that holds its records."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER_BYTES, BLOCK_BYTES, RECORD_HEADER_BYTES = 7, 32768, 7
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of a `run-*.wandb`, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data.startswith(b":W&B")
    position, parts = HEADER_BYTES, b""
    while position < len(data):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < RECORD_HEADER_BYTES:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += RECORD_HEADER_BYTES
        parts += data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
