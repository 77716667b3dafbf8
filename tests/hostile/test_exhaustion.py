"""Small pickles that ask for much: memory, depth, time."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys

import pytest
from forge import as_entry, as_root, dumped, small_bases, text, without_frames

from refine import pickles
from refine.pickles import writer
from refine.pickles.tree import submodules


def exhaustion_cases() -> dict[str, bytes]:
    many = 300_000
    cases = {
        "memo": pickle.NONE + pickle.LONG_BINPUT + struct.pack("<I", 2**31 - 1),
        "memo, small": pickle.NONE + pickle.BINPUT + b"\xff",
        "memo never written": pickle.LONG_BINGET + struct.pack("<I", 1 << 20),
        "deep tuples": pickle.EMPTY_TUPLE + pickle.TUPLE1 * many,
        "deep tuple as a key": pickle.EMPTY_DICT
        + pickle.EMPTY_TUPLE
        + pickle.TUPLE1 * 100
        + pickle.NONE
        + pickle.SETITEM,
        "deep lists": pickle.EMPTY_LIST * many + pickle.APPEND * (many - 1),
        "deep marks": pickle.MARK * many,
        "deep dicts": (pickle.EMPTY_DICT + text("k")) * 1000 + pickle.NONE + pickle.SETITEM * 1000,
        "many sets": pickle.EMPTY_LIST + pickle.MARK + pickle.EMPTY_SET * many + pickle.APPENDS,
        "many dicts": pickle.EMPTY_LIST + pickle.MARK + pickle.EMPTY_DICT * many + pickle.APPENDS,
        "unhashable key": pickle.EMPTY_DICT + pickle.EMPTY_LIST + pickle.NONE + pickle.SETITEM,
        "colliding keys": pickle.EMPTY_DICT
        + b"".join(
            pickle.LONG1 + bytes([16]) + (k * (2**61 - 1)).to_bytes(16, "little") + pickle.NONE + pickle.SETITEM
            for k in range(1, 2000)
        ),
        # Hashing it would visit 2^60 tuples.
        "doubling tuples as a key": pickle.MARK
        + pickle.EMPTY_TUPLE
        + pickle.MEMOIZE
        + b"".join(2 * (pickle.BINGET + bytes([n])) + pickle.TUPLE2 + pickle.MEMOIZE for n in range(60))
        + pickle.EMPTY_DICT
        + pickle.BINGET
        + bytes([60])
        + pickle.NONE
        + pickle.SETITEM
        + pickle.TUPLE,
        "itself": pickle.EMPTY_LIST + pickle.MEMOIZE + pickle.BINGET + b"\x00" + pickle.APPEND,
        "itself in a dict": pickle.EMPTY_DICT + pickle.MEMOIZE + text("k") + pickle.BINGET + b"\x00" + pickle.SETITEM,
        "frame": pickle.FRAME + struct.pack("<Q", 1 << 30) + pickle.NONE,
        "frame of 2^63": pickle.FRAME + struct.pack("<Q", 1 << 63) + pickle.NONE,
        "no value": pickle.REDUCE,
        "two values": pickle.NONE + pickle.NONE,
        "open mark": pickle.NONE + pickle.MARK,
    }
    declared = {"string": pickle.BINUNICODE8, "bytes": pickle.BINBYTES8, "bytearray": pickle.BYTEARRAY8}
    for name, opcode in declared.items():
        cases[f"1 GB {name} in 1 KB"] = opcode + struct.pack("<Q", 1 << 30) + b"x" * 1000
        cases[f"2^64 - 1 {name}"] = opcode + struct.pack("<Q", 2**64 - 1) + b"x" * 1000
    cases["4 GB bytes"] = pickle.BINBYTES + struct.pack("<I", 2**32 - 1)
    cases["4 GB string"] = pickle.BINUNICODE + struct.pack("<I", 2**32 - 1)
    laughs = pickle.EMPTY_LIST + pickle.MEMOIZE
    for level in range(100):
        get = pickle.BINGET + bytes([level])
        laughs += pickle.EMPTY_LIST + pickle.MEMOIZE + pickle.MARK + get * 10 + pickle.APPENDS
    cases["billion laughs"] = pickle.MARK + laughs + pickle.TUPLE
    return cases


@pytest.mark.parametrize("name", exhaustion_cases())
def test_exhaustion(name, check, fixture_path):
    body = exhaustion_cases()[name]
    assert not check(as_root(body))
    if pickle.BINGET not in body:  # else its memo numbers mean something else within another pickle
        assert not check(as_entry(body, without_frames(small_bases(fixture_path)[0])))


def nested_laughs(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value] * 10
    return value


def test_billion_laughs_in_settings(check, fixture_path):
    """Well-formed and small in memory; only what expands it could be exhausted."""
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    mapping = submodules(pkl["G_ema"])["mapping"]
    mapping.attributes["_init_kwargs"]["num_layers"] = nested_laughs(60)
    assert not check(dumped({"G_ema": mapping}))
    plain = {"G_ema": submodules(pkl["G"])["mapping"], "training_set_kwargs": {"path": nested_laughs(60)}}
    assert check(dumped(plain))  # shown as unreadable


def test_billion_laughs_in_modules(check, fixture_path):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    child = submodules(pkl["G_ema"])["mapping"]
    for _ in range(12):
        parent = writer.unshared(child)
        parent.attributes["_modules"] = {f"m{i}": child for i in range(8)}
        child = parent
    assert not check(dumped({"G_ema": child}))


@pytest.mark.parametrize("case", ["memo", "1 GB bytes in 1 KB", "many sets", "deep tuples"])
def test_real_process_with_little_memory(case, tmp_path):
    """The command itself, with 3 GB of address space: enough for torch, not for what the pickle asks."""
    path = tmp_path / "case.pkl"
    path.write_bytes(as_root(exhaustion_cases()[case]))
    code = "import resource, runpy; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); "
    code += (
        f"import sys; sys.argv = ['inspect', {str(path)!r}]; runpy.run_module('refine.inspect', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
