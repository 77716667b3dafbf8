"""Named spans of work, visible to PyTorch's profiler and to listeners such as `training.profiling`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch.profiler import record_function


class Listener(Protocol):
    """Receiver of the beginnings and ends of spans."""

    def enter(self, name: str) -> None:
        """Called at the beginning of a span."""
        ...

    def leave(self) -> None:
        """Called at the end of the innermost span."""
        ...


_listeners: list[Listener] = []


@contextmanager
def span(name: str) -> Iterator[None]:
    """Marks the work of a `with` block as a span."""
    with record_function(name):
        for listener in _listeners:
            listener.enter(name)
        try:
            yield
        finally:
            for listener in _listeners:
                listener.leave()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Reports all spans within a `with` block to a listener."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
