"""Pickles that name what could run: nothing does, nothing is touched, and the user reads one sentence."""

from __future__ import annotations

import pickle
import struct

import pytest
from forge import as_entry, as_root, small_bases, text, without_frames
from gadgets import TARGETS, gadgets


def test_gadgets(check, fixture_path):
    base = without_frames(small_bases(fixture_path)[0])
    assert check(base)
    num_cases = 0
    for module, name in TARGETS:
        for body in gadgets(module, name):
            memory = num_cases % 14 == 0
            assert not check(as_root(body), memory)
            assert not check(as_entry(body, base), memory)
            num_cases += 2
    assert num_cases > 800


# The opcodes that call nothing by themselves but reach registries, buffers or the caller.
@pytest.mark.parametrize(
    "body",
    [
        pickle.EXT1 + b"\x01",
        pickle.EXT2 + b"\x01\x00",
        pickle.EXT4 + b"\x01\x00\x00\x00",
        pickle.PERSID + b"x\n",
        text("x") + pickle.BINPERSID,
        pickle.NEXT_BUFFER,
        pickle.NEXT_BUFFER + pickle.READONLY_BUFFER,
        pickle.NONE + pickle.DUP,
        pickle.INT + b"1" * 100_000 + b"\n",
        pickle.LONG + b"9" * 100_000 + b"L\n",
        pickle.LONG4 + struct.pack("<i", 100_000) + b"\xff" * 100_000,
        pickle.STRING + b"'" + b"x" * 1000 + b"'\n",
        pickle.UNICODE + b"x" * 1000 + b"\n",
        pickle.GET + b"0\n",
        pickle.FLOAT + b"1e309\n",
        pickle.MARK + pickle.FROZENSET,
        b"\x00",
        b"\xff",
    ],
)
def test_opcodes_that_no_network_pickle_needs(body, check, fixture_path):
    assert not check(as_root(body))
    assert not check(as_entry(body, without_frames(small_bases(fixture_path)[0])))
