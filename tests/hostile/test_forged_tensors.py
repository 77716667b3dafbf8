"""Tensor storages and views that lie about themselves."""

from __future__ import annotations

import io
import os
import pickle
import struct

import pytest
import torch
from forge import Call, Persistent


def storage_archive(*, magic=0x1950A86A20F9469CFC6C, version=1001, system=None, pid=None, keys=None, numel=4, raw=None):
    """A torch.save archive of the old kind, with any of its parts replaced."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}} if system is None else system
    pid = ("storage", torch.FloatStorage, "0", "cpu", numel, None) if pid is None else pid

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return pid if obj is Pickler else None

    file = io.BytesIO()
    for value in (magic, version, system):
        pickle.dump(value, file, protocol=2)
    Pickler(file, protocol=2).dump(Pickler)
    pickle.dump(["0"] if keys is None else keys, file, protocol=2)
    file.write(struct.pack("<q", numel) + b"\0" * 4 * 4 if raw is None else raw)
    return file.getvalue()


def network_with_storage(archive: bytes, tensor_args: bytes | None = None) -> bytes:
    """A pickle whose one network has one buffer on that storage."""

    class Blob:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (archive,)

    class Buffer:
        def __reduce__(self):
            args = (Blob(), 0, (2, 2), (2, 1), False, {}) if tensor_args is None else (Blob(), *tensor_args)
            return torch._utils._rebuild_tensor_v2, args

    return pickle.dumps({"G_ema": Persistent({"_buffers": {"x": Buffer()}})}, protocol=4)


def test_good_archive_is_accepted(check):
    assert check(network_with_storage(storage_archive()))


@pytest.mark.parametrize(
    "archive",
    [
        b"",
        b"x" * 100,
        storage_archive(magic=1),
        storage_archive(version=1002),
        storage_archive(system={}),
        storage_archive(system={"little_endian": False}),
        storage_archive(system=[]),
        storage_archive(pid=("module", torch.FloatStorage, "0", "cpu", 4, None)),
        storage_archive(pid=("storage", torch.FloatStorage, "0", "cpu", 4, ("0", 0, 4))),
        storage_archive(pid=("storage", "FloatStorage.x", "0", "cpu", 4, None)),
        storage_archive(pid=("storage", eval, "0", "cpu", 4, None)),
        storage_archive(pid=("storage", os.system, "0", "cpu", 4, None)),
        storage_archive(pid=("storage", torch.FloatStorage, "0", "cpu", 2**60, None)),
        storage_archive(pid=("storage", torch.FloatStorage, "0", "cpu", -4, None)),
        storage_archive(pid=("storage", torch.FloatStorage, "0", "cpu", 4.0, None)),
        storage_archive(pid=("storage", torch.FloatStorage)),
        storage_archive(keys=["1"]),
        storage_archive(keys=[]),
        storage_archive(keys=Call(os.system, "true")),
        storage_archive(system=Call(os.system, "true")),
        storage_archive(magic=Call(eval, "1")),
        storage_archive(raw=b""),
        storage_archive(raw=struct.pack("<q", 4) + b"\0" * 15),
        storage_archive(raw=struct.pack("<q", 4) + b"\0" * 17),
        storage_archive(raw=struct.pack("<q", -1) + b"\0" * 16),
        storage_archive(raw=struct.pack("<q", 2**62) + b"\0" * 16),
        storage_archive(numel=2**62, raw=struct.pack("<q", 2**62) + b"\0" * 16),
        storage_archive()[:50],
        b"\x80\x02Nr\xff\xff\xff\x7f." * 5,
    ],
)
def test_forged_archives(archive, check):
    assert not check(network_with_storage(archive))


@pytest.mark.parametrize(
    "tensor_args",
    [
        (1, (2, 2), (2, 1), False, {}),
        (0, (3, 2), (2, 1), False, {}),
        (0, (2, 2), (4, 1), False, {}),
        (0, (5,), (0,), False, {}),  # within the storage, yet larger than it
        (0, (10**9, 10**9), (0, 0), False, {}),
        (-1, (2,), (1,), False, {}),
        (0, (-1,), (1,), False, {}),
        (3, (4,), (-1,), False, {}),
        (0, (2,), (1, 1), False, {}),
        (0, (2**63,), (1,), False, {}),
        (0, (True, 2), (1, 1), False, {}),
        (0, (2.0,), (1,), False, {}),
        (0, [2], [1], False, {}),
        (0, (1,) * 17, (1,) * 17, False, {}),
        (0, (2,), (1,), False, {"hook": 1}),
        (0, (2,), (1,)),
        (),
    ],
)
def test_views_that_do_not_fit(tensor_args, check):
    assert not check(network_with_storage(storage_archive(), tensor_args))
