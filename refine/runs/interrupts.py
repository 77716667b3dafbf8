"""Graceful interruption: after Ctrl-C or SIGTERM, the current step is finished and saved before the process ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ECHO_SECONDS = 2.0  # signals within this time count as one: launchers repeat what the terminal has sent


class StopRequest:
    """Request to end the process.

    Attributes:
        number: Number of the signal; None if there was none.
        urgent: Whether to raise KeyboardInterrupt at once instead of waiting for the end of a step; for work that may
            be lost.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.urgent = False
        self._time = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Records SIGINT and SIGTERM; a second SIGINT, after `ECHO_SECONDS`, ends the process as usual.

        A second SIGTERM does not, because launchers send it while rank 0 still saves. Outside the main thread, where
        Python handles no signals, nothing is recorded.
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
        """Name of the signal, for messages."""
        return signal.Signals(self.number).name if self.number else "another process"
