"""Ctrl-C and SIGTERM as a request: the step in hand is finished and saved before the process ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ECHO_SECONDS = 2.0  # a launcher passes on what the terminal has already sent: within this time it is one request


class StopRequest:
    """Whether somebody asked the process to end.

    Attributes:
        number: the signal that asked; None: nobody did.
        urgent: raise KeyboardInterrupt at once instead of waiting for the end of a step; for work that may be lost.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.urgent = False
        self._time = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Notes SIGINT and SIGTERM; another SIGINT, after a while, ends the process as usual.

        Another SIGTERM does not: launchers send it while the first process still saves. In a thread that is not the
        main one Python has no signals, and nothing is noted.
        """

        def note(number: int, frame: Any) -> None:
            if self.number is None:
                self.number, self._time = number, time.monotonic()
                if self.urgent:
                    raise KeyboardInterrupt
            elif number == signal.SIGINT and time.monotonic() - self._time > ECHO_SECONDS:
                restore()
                signal.raise_signal(number)

        def restore() -> None:
            for which, handler in previous.items():
                signal.signal(which, handler)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
        for which in previous:
            signal.signal(which, note)
        try:
            yield
        finally:
            restore()

    @property
    def name(self) -> str:
        """The signal's name, for a message."""
        return signal.Signals(self.number).name if self.number else "another process"
