"""Named spans of work: they show in PyTorch's profiler, and to a listener such as `training.profiling`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch.profiler import record_function


class Listener(Protocol):
    """Whoever wants to know when spans begin and end."""

    def enter(self, name: str) -> None:
        """Begins a span."""
        ...

    def leave(self) -> None:
        """Ends the innermost span."""
        ...


_listeners: list[Listener] = []


@contextmanager
def span(name: str) -> Iterator[None]:
    """Names the work of a `with` block."""
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
    """Tells a listener of all spans within a `with` block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
