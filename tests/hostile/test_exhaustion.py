"""Small pickles that ask for much: memory, depth, time."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys

import pytest
from assembler import (
    LOAD,
    PERSISTENT,
    archive,
    blob,
    doubling,
    get,
    mapping,
    module,
    name,
    number,
    put,
    root,
    sequence,
    storage,
    tensor,
    text,
    tuple_of,
)
from click.testing import CliRunner
from forge import as_entry, as_root, dumped, small_bases, without_frames

from refine import pickles
from refine.commands import run as cli
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
    for what, opcode in declared.items():
        cases[f"1 GB {what} in 1 KB"] = opcode + struct.pack("<Q", 1 << 30) + b"x" * 1000
        cases[f"2^64 - 1 {what}"] = opcode + struct.pack("<Q", 2**64 - 1) + b"x" * 1000
    cases["4 GB bytes"] = pickle.BINBYTES + struct.pack("<I", 2**32 - 1)
    cases["4 GB string"] = pickle.BINUNICODE + struct.pack("<I", 2**32 - 1)
    laughs = pickle.EMPTY_LIST + pickle.MEMOIZE
    for level in range(100):
        get = pickle.BINGET + bytes([level])
        laughs += pickle.EMPTY_LIST + pickle.MEMOIZE + pickle.MARK + get * 10 + pickle.APPENDS
    cases["billion laughs"] = pickle.MARK + laughs + pickle.TUPLE
    return cases


@pytest.mark.parametrize("case", exhaustion_cases())
def test_exhaustion(case, check, fixture_path):
    body = exhaustion_cases()[case]
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


@pytest.mark.parametrize(
    "case",
    [
        "memo",
        "1 GB bytes in 1 KB",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("many sets", "deep tuples")),
    ],
)
def test_real_process_with_little_memory(case, tmp_path):
    """The command itself, with 3 GB of address space: enough for torch, not for what the pickle asks."""
    path = tmp_path / "case.pkl"
    path.write_bytes(as_root(exhaustion_cases()[case]))
    code = "import resource, runpy; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); "
    code += f"import sys; sys.argv = ['', 'inspect', {str(path)!r}]; runpy.run_module('refine', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


# -- structures that expand where they are compared, printed, hashed, named or read --------------------------

ARRAY = (
    name("numpy._core.multiarray", "_reconstruct") + tuple_of(name("numpy", "ndarray"), b"K\0\x85", blob(b"b")) + b"R"
)
DTYPE = name("numpy", "dtype") + tuple_of(text("f8"), pickle.NEWFALSE, pickle.NEWTRUE) + b"R"


def numpy_array(shape: tuple[int, ...], data: bytes) -> bytes:
    state = (number(1), tuple_of(*(number(n) for n in shape)), DTYPE, pickle.NEWFALSE, blob(data))
    return ARRAY + tuple_of(*state) + pickle.BUILD


def network_with(buffer: bytes) -> bytes:
    return root((text("G"), module(mapping((text("x"), buffer)))))


def beside(value: bytes) -> bytes:
    """A network, and another entry."""
    return root((text("G"), module()), (text("x"), value))


def expanding_cases() -> dict[str, bytes]:
    keys = b"\x80\x02" + pickle.EMPTY_LIST + doubling(60) + pickle.APPEND + pickle.STOP
    big_system = (
        b"\x80\x02" + mapping((text("little_endian"), b"\x88"), (text("x"), sequence(pickle.NONE * 95_000))) + b"."
    )
    many_loads = blob(archive(system=big_system)) + pickle.TUPLE1 + put(0) + LOAD + put(1)
    source = text("#" * 1_000_000)
    fields = [(text("type"), text("class")), (text("version"), number(6)), (text("module_src"), source)]
    fields += [(text("class_name"), text("M")), (text("state"), b"}")]
    one = PERSISTENT + put(0) + mapping(*fields) + pickle.TUPLE1 + put(1) + pickle.REDUCE
    row = sequence(number(7) * 300) + put(0)
    square = sequence(row, get(0) * 300) + put(1)
    attributes = [(text("a"), square), *((text(f"z_dim{i}"), get(1)) for i in range(3000))]
    leaf = tensor() + put(0)
    names = [(text("x"), leaf), *((text(f"x{i}"), get(0)) for i in range(3000))]
    child = module(mapping(*names)) + put(1)
    children = [(text(f"{i}"), get(1)) for i in range(3000)]
    names_of_one = [(text(f"k{i}"), get(0)) for i in range(2000)]
    again = get(0) + get(1) + pickle.REDUCE
    return {
        "keys that compare forever": network_with(tensor(storage(archive(key=doubling(60), keys=keys)))),
        "version that prints forever": root((text("G"), module(version=doubling(60)))),
        "array with a side of a billion": beside(numpy_array((10**9, 0), b"")),
        "array of seventy dimensions": beside(numpy_array((1,) * 70, b"\0" * 8)),
        "array that does not fit": beside(numpy_array((3,), b"\0" * 8)),
        "one archive read again and again": beside(sequence(many_loads, (get(1) + get(0) + b"R") * 2000)),
        "one source hashed again and again": root((text("G"), one), (text("x"), sequence(again * 4000))),
        "settings": root((text("G"), module(b"}", *attributes))),
        "a long string printed again and again": beside(sequence(text("#" * 300_000) + put(0) + get(0) * 20_000)),
        "names": root((text("G"), module(b"}", modules=mapping((text("c"), child), *children)))),
        "one network under many names": root((text("G"), module() + put(0)), *names_of_one),
        "empty tensor of vast sides": network_with(tensor(shape=(0, 2**30, 2**30), stride=(1, 1, 1))),
    }


@pytest.mark.parametrize("case", expanding_cases())
def test_structures_that_expand(case, check):
    check(expanding_cases()[case])


def test_names_from_the_file_cannot_control_the_terminal(tmp_path, fixture_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(root((text("G_ema"), module(class_name="\x1b[2J\x1b]0;pwn\x07\nsecond line" + "x" * 10_000))))
    result = CliRunner().invoke(
        cli.main, ["--gan", str(path), "--teacher", str(fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl")), "-n"]
    )
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and len(result.stderr) < 1000
    assert result.stderr[:-1].isprintable() and "\\x1b[2J" in result.stderr


def test_output_that_the_terminal_cannot_encode(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(root((text("G_ema"), module(class_name="生成器"))))
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", "refine", "inspect", str(path)]
    result = subprocess.run(command, capture_output=True, env=environment)
    assert result.returncode == 0 and b"\\u751f" in result.stdout
