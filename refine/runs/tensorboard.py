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
        first_kimg: scalars of an earlier process from here on are hidden: a resumed run writes them again.
    """

    def __init__(self, folder: Path, first_kimg: int = 0) -> None:
        self.folder, self.first_kimg = folder, first_kimg
        self._writer: Any = None
        self._silent = False

    def add(self, values: Mapping[str, Any], cur_nimg: int, timestamp: float) -> None:
        """Writes every number whose name has a group, such as `Loss/fake`.

        Whatever goes wrong ends the events, not the run: `stats.jsonl` has all of it.
        """
        if self._silent:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter  # takes a second to import

                self._writer = SummaryWriter(str(self.folder), purge_step=self.first_kimg or None)
            for name, value in values.items():
                if "/" in name:
                    self._writer.add_scalar(name, value, cur_nimg // 1000, walltime=timestamp)
            self._writer.flush()
        except ModuleNotFoundError:
            self._silent = True
        except Exception as error:  # a full disk, or a TensorBoard that does not fit its own dependencies
            log.warning(f"No more TensorBoard events are written ({error}); stats.jsonl goes on.")
            self._silent = True

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()
