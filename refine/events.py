"""TensorBoard events beside `stats.jsonl`, where TensorBoard is installed (`pip install tensorboard`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("refine")


class EventWriter:
    """Writes numbers as scalars over kimg; does nothing where TensorBoard is missing.

    Args:
        folder: of the run.
        start_time: seconds since 1970 that the run began at; TensorBoard's clock counts from there.
    """

    def __init__(self, folder: Path, start_time: float) -> None:
        self.folder, self.start_time = folder, start_time
        self._writer: Any = None
        self._silent = False

    def add(self, values: Mapping[str, Any], cur_nimg: int, timestamp: float) -> None:
        """Writes every number whose name has a group, such as `Loss/fake`.

        A disk that is full ends the events, not the run: `stats.jsonl` has all of it.
        """
        if not self._silent and self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter  # takes a second to import
            except ImportError:
                self._silent = True
            else:
                self._writer = SummaryWriter(str(self.folder))
        if self._silent:
            return
        try:
            for name, value in values.items():
                if "/" in name:
                    self._writer.add_scalar(name, value, cur_nimg // 1000, walltime=timestamp - self.start_time)
            self._writer.flush()
        except OSError as error:
            log.warning(f"No more TensorBoard events are written ({error}); stats.jsonl goes on.")
            self._silent = True

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()
