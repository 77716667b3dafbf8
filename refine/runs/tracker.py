"""Trackers, which show a run in other programs besides `stats.jsonl`: TensorBoard, and Weights & Biases on request.

An error in a tracker ends the tracker with a warning, not the run: the run's folder has everything.
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
    """Tracker of a run. Positions (`cur_nimg`) are images of generator updates, negative during the warm-up.

    Attributes:
        title: Name of the program, for messages.
        optional: Whether to ignore a program that is not installed.
    """

    title: str
    optional = True

    def __init__(self) -> None:
        self._started = self._ended = False

    def add_numbers(self, values: Mapping[str, Any], cur_nimg: int, timestamp: float) -> None:
        """Adds every number whose name has a group, such as `Loss/fake`.

        Args:
            values: Numbers by name.
            cur_nimg: Position of the run.
            timestamp: Seconds since the epoch.
        """
        self._guard(lambda: self._numbers({k: v for k, v in values.items() if "/" in k}, cur_nimg, timestamp))

    def add_picture(self, name: str, path: Path, cur_nimg: int, timestamp: float) -> None:
        """Adds a PNG; pictures of one name form a series, such as `fakes`.

        Args:
            name: Name of the series.
            path: PNG file.
            cur_nimg: Position of the run.
            timestamp: Seconds since the epoch.
        """
        self._guard(lambda: self._picture(name, path, cur_nimg, timestamp))

    def add_options(self, options: Mapping[str, Any]) -> None:
        """Adds the options of the run, without secrets in URLs."""
        public = {name: without_secrets(value) if isinstance(value, str) else value for name, value in options.items()}
        self._guard(lambda: self._options(public))

    def close(self) -> None:
        """Ends the tracking."""
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
                log.warning(f"Continuing without {self.title}: {error}.")
        except Exception as error:  # a full disk, a server that is down, incompatible versions
            self._ended = True
            log.warning(f"Continuing without {self.title} ({error}); stats.jsonl is complete.")

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
    """All trackers of a run.

    Args:
        trackers: Trackers, in the order in which they are called; none except on rank 0.
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
