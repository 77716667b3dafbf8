"""The positive control: the watchman notices code that runs, and memory."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess

import pytest
from forge import Call


@pytest.mark.parametrize(
    ("gadget", "event"),
    [
        (Call(os.system, "true"), "os.system"),
        (Call(eval, "1 + 1"), "compile"),
        (Call(exec, "x = 1"), "compile"),
        (Call(__import__, "this_module_does_not_exist"), "import"),
        (Call(open, os.devnull), "open"),
        (Call(subprocess.check_output, ["true"]), "subprocess.Popen"),
        (Call(os.mkdir, "/nonexistent/folder"), "os.mkdir"),
    ],
)
def test_harness_notices_code_that_runs(gadget, event, watching):
    data = pickle.dumps(gadget)
    with watching("none") as watch, contextlib.suppress(Exception):
        pickle.loads(data)
    assert event in {name for name, _ in watch.events}


def test_harness_notices_memory(watching):
    with watching("none") as watch:
        pickle.loads(b"\x80\x04Nr" + struct.pack("<I", 1 << 23) + b".")
    assert watch.peak_bytes > 100 << 20  # nine bytes of pickle
