"""Files of torch.save that were forged or damaged: nothing runs, nothing is exhausted, one sentence is said."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import struct
import warnings
import zipfile
from collections.abc import Callable

import pytest
from forge import members_of, text, torch_file_of, zip_of
from gadgets import TARGETS, gadgets, mutated

from refine import pickles
from refine.pickles.tree import submodules


@pytest.fixture(scope="module")
def network(fixture_path):
    """A record that loads in a millisecond."""
    return submodules(pickles.load(fixture_path("sg2ada/b_cond16.pkl"))["G_ema"])["mapping"]


@pytest.fixture(scope="module")
def members(network) -> dict[str, bytes]:
    return members_of(torch_file_of(network))


def name_of_object(members: dict[str, bytes]) -> str:
    return next(name for name in members if name.endswith("/data.pkl"))


def test_good_files_are_accepted(check, network, members):
    assert check(torch_file_of(network)) and check(torch_file_of(network, legacy=True)) and check(zip_of(members))


def test_gadgets_in_the_object(check, members):
    name = name_of_object(members)
    for module, attribute in TARGETS[::3]:
        for body in gadgets(module, attribute)[::2]:
            assert not check(zip_of(members | {name: b"\x80\x02" + body + pickle.STOP}), memory=False)
            entry = members[name][:-1] + text("x") + pickle.TUPLE1 + body + pickle.TUPLE2 + pickle.STOP
            assert not check(zip_of(members | {name: entry}), memory=False)


def replaced(members: dict[str, bytes], part: bytes, by: bytes) -> bytes:
    name = name_of_object(members)
    assert part in members[name]
    return zip_of(members | {name: members[name].replace(part, by, 1)})


FORGED: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "no storages": lambda m: zip_of({name: data for name, data in m.items() if "/data/" not in name}),
    "short storage": lambda m: zip_of({name: data[:-1] if "/data/" in name else data for name, data in m.items()}),
    "long storage": lambda m: zip_of({name: data + b"\0" if "/data/" in name else data for name, data in m.items()}),
    "compressed": lambda m: zip_of(m, zipfile.ZIP_DEFLATED),
    "two names": lambda m: zip_of([*m.items(), *list(m.items())[:1]]),
    "two objects": lambda m: zip_of({**m, "other/data.pkl": m[name_of_object(m)]}),
    "deep object": lambda m: zip_of({f"x/{name}": data for name, data in m.items()}),
    "big-endian": lambda m: zip_of({n: b"big" if n.endswith("byteorder") else d for n, d in m.items()}),
    "many members": lambda m: zip_of({**m, **{f"archive/data/x{i}": b"" for i in range(3000)}}) + b"x",
    "key of a path": lambda m: replaced(m, b"X\x01\x00\x00\x000", b"X\x04\x00\x00\x00../0"),
    "another kind": lambda m: replaced(m, b"FloatStorage", b"HalfStorage\n"[:12]),
    "unknown kind": lambda m: replaced(m, b"ctorch\nFloatStorage", b"ctorch\nQInt8Storage"),
    "no storage": lambda m: replaced(m, b"storage", b"storagf"),
    "object cut": lambda m: zip_of(m | {name_of_object(m): m[name_of_object(m)][:-200]}),
    "object with more": lambda m: zip_of(m | {name_of_object(m): m[name_of_object(m)] + b"N."}),
    "memo": lambda m: zip_of(m | {name_of_object(m): b"\x80\x02N" + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f."}),
    "deep": lambda m: zip_of(m | {name_of_object(m): b"\x80\x02)" + pickle.TUPLE1 * 100_000 + b"."}),
    "text codec": lambda m: zip_of(
        m | {name_of_object(m): b"\x80\x02c_codecs\nencode\n" + text("x") + text("rot13") + b"\x86R."}
    ),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", FORGED)
def test_forged_archives(case, check, members):
    accepted = check(FORGED[case](members))
    assert not accepted or case == "many members"


def test_encrypted_and_overlapping_members(check, members):
    data = zip_of(members)
    flags = bytearray(data)
    at = data.index(b"PK\x01\x02")
    flags[at + 8] |= 1
    assert not check(bytes(flags))
    # Two entries of the directory for the bytes of the largest member.
    file = io.BytesIO(data)
    with warnings.catch_warnings(), zipfile.ZipFile(file, "a") as archive:
        warnings.simplefilter("ignore")
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        for number in range(50):
            twin = zipfile.ZipInfo(f"archive/data/twin{number}")
            for attribute in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(twin, attribute, getattr(largest, attribute))
            archive.filelist.append(twin)
        archive._didModify = True
    assert not check(file.getvalue())


def test_legacy_files_that_lie(check, network):
    data = torch_file_of(network, legacy=True)
    assert check(data)
    assert not check(data + b"\0") and not check(data[:-1]) and not check(data[: len(data) // 2])
    # The size of the first storage stands behind the list of keys, in the file and in its description.
    for change in (b"\xff" * 7 + b"\x7f", struct.pack("<q", -1), struct.pack("<q", 0)):
        at = legacy_data_start(data)
        assert not check(data[:at] + change + data[at + 8 :])


def legacy_data_start(data: bytes) -> int:
    file = io.BytesIO(data)
    for _ in range(5):
        for _ in pickletools.genops(file):
            pass
    return file.tell()


def test_mutated_files(check, network, members):
    """Bytes of the whole file, of the object in it, and of a file before PyTorch 1.6."""
    name, whole, legacy = name_of_object(members), zip_of(members), torch_file_of(network, legacy=True)
    positions = [position for _, _, position in pickletools.genops(members[name])]
    accepted = 0
    for case in range(900):
        rng = random.Random(f"7:{case}")
        if case % 3 == 0:
            data = zip_of(members | {name: mutated(members[name], rng, positions)})
        elif case % 3 == 1:
            data = mutated(whole, rng, [rng.randrange(len(whole)) for _ in range(20)])
        else:
            data = mutated(legacy, rng, [rng.randrange(legacy_data_start(legacy)) for _ in range(20)])
        accepted += check(data, memory=case % 7 == 0)
    assert 0 < accepted < 600
