"""Programs that show a run while it goes on, beside `stats.jsonl`: TensorBoard, and Weights & Biases on request.

Whatever goes wrong in one of them ends its part with one line, and not the run: the run's folder has everything.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refine.files.addresses import without_secrets

log = logging.getLogger("refine")


class Tracker(ABC):
    """One such program. `cur_nimg` counts images of generator updates; those of the warm-up lie before 0.

    Attributes:
        title: Name of the program, for messages.
        optional: Whether a program that is not installed is passed over in silence.
    """

    title: str
    optional = True

    def __init__(self) -> None:
        self._started = self._ended = False

    def add_numbers(self, values: Mapping[str, Any], cur_nimg: int, timestamp: float) -> None:
        """Shows every number whose name has a group, such as `Loss/fake`.

        Args:
            values: Numbers by name.
            cur_nimg: Their place.
            timestamp: Seconds since the epoch.
        """
        self._guard(lambda: self._numbers({k: v for k, v in values.items() if "/" in k}, cur_nimg, timestamp))

    def add_picture(self, name: str, path: Path, cur_nimg: int, timestamp: float) -> None:
        """Shows a PNG; those of one name form a series, such as `fakes`."""
        self._guard(lambda: self._picture(name, path, cur_nimg, timestamp))

    def add_options(self, options: Mapping[str, Any]) -> None:
        """Shows the options of the run, without secrets in addresses."""
        public = {name: without_secrets(value) if isinstance(value, str) else value for name, value in options.items()}
        self._guard(lambda: self._options(public))

    def close(self) -> None:
        """Ends the program's part."""
        if self._started:
            self._guard(self._close)
        self._ended = True

    def _guard(self, action: Callable[[], None]) -> None:
        if self._ended:
            return
        try:
            if not self._started:
                self._start()
                self._started = True
            action()
        except ModuleNotFoundError as error:
            self._ended = True
            if not self.optional:
                log.warning(f"Warning: {self.title} shows nothing of this run: {error}.")
        except Exception as error:  # a full disk, a server that is away, versions that do not fit each other
            self._ended = True
            log.warning(f"Warning: {self.title} shows nothing more of this run ({error}); stats.jsonl goes on.")

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _numbers(self, values: Mapping[str, Any], cur_nimg: int, timestamp: float) -> None: ...

    @abstractmethod
    def _picture(self, name: str, path: Path, cur_nimg: int, timestamp: float) -> None: ...

    @abstractmethod
    def _options(self, options: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...


class Trackers:
    """All trackers of a run as one.

    Args:
        trackers: Trackers, in the order in which they are told; none in processes other than the first.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def add_numbers(self, values: Mapping[str, Any], cur_nimg: int, timestamp: float) -> None:
        """See `Tracker`."""
        for tracker in self.trackers:
            tracker.add_numbers(values, cur_nimg, timestamp)

    def add_picture(self, name: str, path: Path, cur_nimg: int, timestamp: float) -> None:
        """See `Tracker`."""
        for tracker in self.trackers:
            tracker.add_picture(name, path, cur_nimg, timestamp)

    def add_options(self, options: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        for tracker in self.trackers:
            tracker.add_options(options)

    def close(self) -> None:
        """See `Tracker`."""
        for tracker in self.trackers:
            tracker.close()
