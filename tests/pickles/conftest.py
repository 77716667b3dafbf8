"""A watchman for hostile pickles: notices imports, files, processes, code and memory."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

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


@dataclass
class Watch:
    """What happened: `events` as (name, first argument), and the peak of memory in bytes."""

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
def watching() -> Callable[[str], object]:
    """Give the context manager under whose eyes one file may be read."""
    sys.addaudithook(_hook)  # cannot be removed; idle unless a watch is on

    @contextmanager
    def watch(allowed_file: str) -> Iterator[Watch]:
        state = Watch(str(allowed_file))
        tracemalloc.start(1)
        base = tracemalloc.get_traced_memory()[0]
        _current.append(state)
        try:
            yield state
        finally:
            _current.clear()
            state.peak_bytes = tracemalloc.get_traced_memory()[1] - base
            tracemalloc.stop()

    return watch
