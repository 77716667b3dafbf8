"""Pickles that the scan, Refine's unpickler and a plain `pickle.load` would read differently, and hidden parts."""

from __future__ import annotations

import io
import logging
import pickle
import struct

import numpy as np
import pytest
from assembler import archive, blob, get, mapping, module, persistent, root, storage, tensor, text
from forge import Persistent

from dnnlib.util import EasyDict
from refine import pickles
from refine.pickles.records import to_python
from refine.pickles.trusted import _what_runs

NUM = 150_000


def crossing(hidden: bytes, frame_length: int = 20_000) -> bytes:
    """An argument that crosses the end of its frame.

    Read in a row, it is a float and then a string. Python's unpickler, reading from a file, drops what is left of the
    frame, takes the float from behind it and goes on within the string.
    """
    start = pickle.EMPTY_DICT + text("x") + pickle.MARK
    padding = blob(b"\0" * (frame_length - len(start) - 5 - 8))
    within = start + padding + pickle.BINFLOAT + b"\0" * 7
    assert len(within) == frame_length
    behind = b"\0" + blob(b"\0\0" + hidden)
    end = pickle.TUPLE + pickle.SETITEM + text("G") + module() + pickle.SETITEM + pickle.STOP
    return b"\x80\x04" + pickle.FRAME + struct.pack("<Q", frame_length) + within + behind + end


def test_python_does_read_it_differently():
    """The control: the hidden opcode is what a plain unpickler sees."""
    data = crossing(pickle.NEWTRUE)
    data = data.replace(text("G") + module() + pickle.SETITEM, b"")
    assert pickle.load(io.BytesIO(data))["x"][-1] is True


@pytest.mark.parametrize(
    "hidden",
    [
        pickle.NONE,
        pickle.NONE + pickle.LONG_BINPUT + struct.pack("<I", 1 << 24),
        pickle.NONE + pickle.TUPLE1 * NUM + pickle.EMPTY_DICT + pickle.MARK + pickle.NONE * 2 + pickle.SETITEMS,
    ],
)
def test_arguments_across_the_end_of_a_frame(hidden, check):
    assert not check(crossing(hidden))


def test_frames_within_frames_and_past_the_end(check):
    body = mapping((text("G"), module())) + pickle.STOP
    frame = lambda n: pickle.FRAME + struct.pack("<Q", n)  # noqa: E731
    assert check(b"\x80\x04" + frame(len(body)) + body)
    assert not check(b"\x80\x04" + frame(len(body) + 9) + frame(len(body)) + body)
    assert not check(b"\x80\x04" + frame(len(body) + 4) + body + b"\0" * 4)


def test_frames_within_an_archive(check):
    """Text within the archive's system information, by the scan, would be the next pickle for torch."""
    hidden = b"s." + b"\x80\x02cos\nsystem\n" + text("echo hit") + b"\x85R." + pickle.dumps([], 2)
    within = pickle.EMPTY_DICT + text("little_endian") + b"\x88s" + text("y") + pickle.BINFLOAT + b"\0" * 7
    covered = (b"?" + hidden).ljust(300, b"?")
    system = b"\x80\x04" + pickle.FRAME + struct.pack("<Q", len(within)) + within
    system += b"\0" + b"s" + pickle.BINUNICODE + struct.pack("<I", len(covered)) + covered + b"Ns."
    assert not check(root((text("G"), module(mapping((text("x"), tensor(storage(archive(system=system)))))))))


def test_memo_that_starts_at_one(check):
    """MEMOIZE counts entries, so a gap at 0 would let it overwrite entry 1: a deep tuple that looks flat."""
    deep = (get(1) + pickle.TUPLE1 + pickle.MEMOIZE) * NUM
    data = pickle.NONE + pickle.BINPUT + b"\x01" + pickle.MARK + pickle.NONE + pickle.MEMOIZE + deep + pickle.TUPLE
    assert not check(b"\x80\x04" + data + pickle.EMPTY_DICT + get(1) + pickle.NONE + b"s" + pickle.TUPLE2 + pickle.STOP)


@pytest.mark.parametrize("what", ["storage", "tensor", "persistent"])
def test_nothing_hides_in_records_that_are_calls(what, check):
    evil = persistent(b"}", source="import os; os.system('true')")
    hiding = {"storage": storage(), "tensor": tensor(), "persistent": module()}[what]
    for addition in (
        mapping((text("h"), evil)) + pickle.BUILD,
        text("k") + evil + pickle.SETITEM,
        evil + pickle.APPEND,
    ):
        assert not check(root((text("G"), module()), (text("x"), hiding + addition)))


def test_second_protocol(check):
    assert not check(b"\x80\x04" + b"\x80\x03" + mapping((text("G"), module())) + pickle.STOP)


def test_names_are_names(check):
    for bad in ("foo\nbar", "a b", "\x1b[2J", "é", ""):
        stacked = text("os") + text(bad) + pickle.STACK_GLOBAL
        assert not check(root((text("G"), module()), (text("x"), stacked)))


def test_foreign_globals_are_named_before_they_run_and_when_written(tmp_path, caplog):
    """With trust, what is not embedded source can run as well: it is announced all the same."""
    call = b"cposix\nsystem\n" + text("true") + pickle.TUPLE1 + pickle.REDUCE
    path = tmp_path / "x.pkl"
    path.write_bytes(root((text("G"), module(b"}", (text("attribute"), call)))))
    pkl = pickles.load(path, trust=True)
    assert pkl.foreign_globals == ("posix.system",)
    with caplog.at_level(logging.WARNING, "refine"):
        pickles.save(pkl, tmp_path / "y.pkl")
    assert "calls of posix.system" in caplog.records[-1].getMessage()
    assert "posix.system" in _what_runs(pkl["G"])


def test_protocol_five_opcodes_in_older_pickles(check):
    buffer = pickle.BYTEARRAY8 + struct.pack("<Q", 3) + b"abc"
    assert not check(root((text("G"), module()), (text("x"), buffer)))
    assert check(b"\x80\x05" + root((text("G"), module()), (text("x"), buffer))[2:])


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_numpy_arrays(protocol, tmp_path):
    """Python 3.14 writes protocol 5 by default, and StyleGAN3's settings hold arrays."""
    settings = EasyDict(size=np.array([[36, 36], [1, 2]]), order=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"G": Persistent({}), "settings": settings}, protocol))
    pkl = pickles.load(path)
    assert to_python(pkl["settings"]) == {key: value.tolist() for key, value in settings.items()}
    pickles.save(pkl, tmp_path / "y.pkl")
    assert (tmp_path / "y.pkl").read_bytes() == path.read_bytes()
