"""A watchman for hostile pickles: notices imports, files, processes, code and memory."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from click.testing import CliRunner
from forge import torch_file_of

from refine import pickles
from refine.commands import inspect

# What Python reports before it does something that no pickle may cause (https://docs.python.org/3/library/audit_events.html).
WATCHED = (
    "import",
    "open",
    "exec",
    "compile",
    "os.",
    "subprocess.",
    "socket.",
    "shutil.",
    "ctypes.",
    "marshal.",
    "pty.",
)
HARMLESS = ("os.scandir", "os.listdir")


# A case may use this much memory: records of Python cost about a hundred bytes for one byte of file.
MEMORY_BASE, MEMORY_PER_BYTE = 24 << 20, 60


@dataclass
class Watch:
    """Record of what happened: `events` as (name, first argument), and the peak of memory in bytes."""

    allowed_file: str
    events: list[tuple[str, object]] = field(default_factory=list)
    peak_bytes: int = 0


_current: list[Watch] = []


def _hook(event: str, args: tuple[object, ...]) -> None:
    if not _current or not event.startswith(WATCHED) or event in HARMLESS:
        return
    first = args[0] if args else None
    if event == "open" and str(first) == _current[0].allowed_file:
        return
    _current[0].events.append((event, first))


@pytest.fixture(scope="session")
def watching() -> Callable[..., object]:
    """Give the context manager under whose eyes one file may be read."""
    sys.addaudithook(_hook)  # cannot be removed; idle unless a watch is on

    @contextmanager
    def watch(allowed_file: str, memory: bool = True) -> Iterator[Watch]:
        state = Watch(str(allowed_file))
        if memory:
            tracemalloc.start(1)
        base = tracemalloc.get_traced_memory()[0]
        _current.append(state)
        try:
            yield state
        finally:
            _current.clear()
            state.peak_bytes = tracemalloc.get_traced_memory()[1] - base  # 0 without measuring
            tracemalloc.stop()

    return watch


@pytest.fixture(scope="module")
def check(watching, tmp_path_factory, fixture_path):
    """`check(data)` gives a pickle to the command line and returns whether it was accepted.

    Measuring its memory, the default, takes twice as long as the rest: tests with hundreds of variants of a small file
    measure some of them.
    """
    path = tmp_path_factory.mktemp("hostile") / "case.pkl"
    runner = CliRunner()

    def run(data: bytes, memory: bool = True) -> bool:
        path.write_bytes(data)
        with watching(path, memory=memory) as watch:
            result = runner.invoke(inspect.main, [str(path)])
        assert not watch.events, watch.events
        assert watch.peak_bytes < MEMORY_BASE + MEMORY_PER_BYTE * len(data), watch.peak_bytes
        assert result.exit_code in (0, 2), (result.output, result.exception)
        if result.exit_code == 2:
            assert result.stdout == ""
            assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
            assert str(path) in result.stderr and "Traceback" not in result.stderr
            assert len(result.stderr) < 1000
        return result.exit_code == 0

    # Whatever is imported lazily on the ordinary way is imported before anything is watched.
    for name in ("sg2ada/b_cond16.pkl", "edm/s2_edm_adm_cond16.pkl", "sg3/s2_stylegan3t_uncond32.pkl"):
        assert runner.invoke(inspect.main, [str(fixture_path(name))]).exit_code == 0
    b"x".decode("cp437")  # the encoding of names in ZIP archives
    ordinary = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))["G_ema"]
    for data in (b"", torch_file_of(ordinary), torch_file_of(ordinary, legacy=True), b"PK\x03\x04", b"[1]"):
        path.write_bytes(data)
        runner.invoke(inspect.main, [str(path)])
    return run
